"""Nodes whose KV may be evicted, in the order of eviction."""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from treeshare.engine.forest import LiveNode

SLACK = 64
"""Outdated entries that the heap may hold beyond the number of its current ones."""


class IdleNodes:
    """Nodes with KV below which nothing runs, as a heap: taking one costs the logarithm of their number.

    Entries are checked when they are popped, so a change of a node only has to be noted; a needless ``note``
    does no harm.
    """

    def __init__(self) -> None:
        self._orders: dict[LiveNode, tuple[bool, int]] = {}
        self._heap: list[tuple[tuple[bool, int], int, LiveNode]] = []
        self._ties = count()  # of equal orders the first noted is first; nodes have no order

    def note(self, node: LiveNode | None) -> None:
        """Add a node that may have become idle, or whose place in the order may have changed."""
        if node is None or not node.is_idle or self._orders.get(node) == node.idle_order:
            return
        self._orders[node] = node.idle_order
        heapq.heappush(self._heap, (node.idle_order, next(self._ties), node))
        if len(self._heap) > 2 * len(self._orders) + SLACK:
            self._drop_outdated()

    def pop(self, keep: Collection[LiveNode] = ()) -> LiveNode | None:
        """Take out the node to evict next, none of ``keep``; None if there is none."""
        kept: list[LiveNode] = []
        found = None
        while self._heap and found is None:
            order, _, node = heapq.heappop(self._heap)
            if self._orders.get(node) != order:
                continue
            del self._orders[node]
            if node in keep or order != node.idle_order:
                kept.append(node)
            elif node.is_idle:
                found = node
        for node in kept:
            self.note(node)
        return found

    def _drop_outdated(self) -> None:
        """Make the heap anew: one entry for each node that is idle."""
        nodes = [node for node in self._orders if node.is_idle]
        self._orders = {node: node.idle_order for node in nodes}
        self._heap = [(order, next(self._ties), node) for node, order in self._orders.items()]
        heapq.heapify(self._heap)
