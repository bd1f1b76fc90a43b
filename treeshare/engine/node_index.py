"""Nodes found by the beginning of their tokens, at the cost of the logarithm of their number."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from treeshare.tree.radix import common_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from treeshare.tree.tokens import TokenArray


class _WithTokens(Protocol):
    """What an index holds; hashable, by identity."""

    token_ids: TokenArray


_Node = TypeVar("_Node", bound=_WithTokens)


class NodeIndex(Generic[_Node]):
    """Nodes in an order in which equal beginnings are neighbours.

    Adding and removing compares with the logarithm of their number of nodes, and moves as many pointers as
    there are after the place.
    """

    def __init__(self) -> None:
        # Byte strings do not sort as numbers do, but equal beginnings are neighbours all the same.
        self._keys: list[bytes] = []
        self._nodes: dict[bytes, dict[_Node, None]] = {}

    def add(self, node: _Node) -> None:
        """Add a node; several may have the same tokens, one that is held already stays."""
        key = node.token_ids.tobytes()
        if key not in self._nodes:
            self._keys.insert(bisect_left(self._keys, key), key)
        self._nodes.setdefault(key, {})[node] = None

    def remove(self, node: _Node) -> None:
        """Take a node out, if it is held."""
        key = node.token_ids.tobytes()
        nodes = self._nodes.get(key, {})
        nodes.pop(node, None)
        if not nodes and key in self._nodes:
            del self._nodes[key]
            del self._keys[bisect_left(self._keys, key)]

    def get(self, tokens: TokenArray) -> _Node | None:
        """The first node that was added with exactly these tokens."""
        return next(iter(self._nodes.get(tokens.tobytes(), ())), None)

    def longest_common(self, tokens: TokenArray) -> int:
        """How many tokens at the beginning of ``tokens`` a node has, too: the largest such number."""
        place = bisect_left(self._keys, tokens.tobytes())
        beside = self._keys[max(place - 1, 0) : place + 1]
        return max((common_prefix(np.frombuffer(key, tokens.dtype), tokens) for key in beside), default=0)

    def neighbours(self, tokens: TokenArray) -> tuple[Iterator[_Node], Iterator[_Node]]:
        """The nodes on either side of ``tokens``: in each iterator, the later, the fewer tokens in common."""
        place = bisect_left(self._keys, tokens.tobytes())

        def nodes(places: range) -> Iterator[_Node]:
            for index in places:
                yield from self._nodes[self._keys[index]]

        return nodes(range(place - 1, -1, -1)), nodes(range(place, len(self._keys)))
