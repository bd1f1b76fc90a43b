"""The live tree: nodes are added with requests and removed when nothing needs them.

A row keeps its segments as long as it runs, so requests that come later never change its bits: where a new
prompt shares only a part of a live node, that part's KV is copied, and the node is not split.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

from treeshare.tree.radix import common_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Sequence as Items

    from torch import Tensor

    from treeshare.config import FoldCost
    from treeshare.kv import Segment
    from treeshare.tree import PromptTree
    from treeshare.tree.tokens import TokenArray


HEAD_TOKENS = 16
"""Minimum number of common tokens for KV to be copied from another node: the smallest chunk of a prompt."""


@dataclass(eq=False, slots=True)
class LiveNode:
    """A segment of prompt tokens that requests share.

    Attributes:
        token_ids: Its tokens; only the forest's root has none.
        start: Position of the first in the prompt.
        parent: The node above; None for the forest's root.
        batch: Number of the batch of requests that added it.
        order: Depth-first rank in the forest, renumbered when nodes are added.
        children: Nodes below, in order of arrival (a dict for quick removal).
        by_head: ``children`` by their first token, and by their first ``HEAD_TOKENS``, as bytes.
        segment: Its KV, or None while it has none.
        logits: ``[vocab_size]`` after its last token, while completions wait to start from there.
        num_unfinished: Completions at or below it that are not finished.
        num_admitted: Those of them that have a row; a node without any may lose its KV.
        num_unstarted: Completions still to start from its last token.
        num_held: Children that have KV.
        last_used: Step in which a completion below it last ended.
    """

    token_ids: TokenArray
    start: int
    parent: LiveNode | None
    batch: int
    order: int = 0
    children: dict[LiveNode, None] = field(default_factory=dict)
    by_head: dict[bytes, dict[LiveNode, None]] = field(default_factory=dict)
    segment: Segment | None = None
    logits: Tensor | None = None
    num_unfinished: int = 0
    num_admitted: int = 0
    num_unstarted: int = 0
    num_held: int = 0
    last_used: int = 0

    @property
    def num_tokens(self) -> int:
        """Length of the segment."""
        return len(self.token_ids)

    def path(self) -> list[LiveNode]:
        """The nodes that hold tokens, from the top down to this one."""
        path: list[LiveNode] = []
        node: LiveNode | None = self
        while node is not None and node.parent is not None:
            path.append(node)
            node = node.parent
        return path[::-1]

    @property
    def is_idle(self) -> bool:
        """Whether it has KV, and no row and no child's KV needs it."""
        return self.segment is not None and not self.num_admitted and not self.num_held

    @property
    def idle_order(self) -> tuple[bool, int]:
        """Order of eviction, lowest first: nodes that no completion needs, then the least recently used."""
        return self.num_unfinished > 0, self.last_used

    def add_child(self, child: LiveNode) -> None:
        """Put a node below this one."""
        self.children[child] = None
        for head in _heads(child.token_ids):
            self.by_head.setdefault(head, {})[child] = None

    def remove_child(self, child: LiveNode) -> None:
        """Take out a node below this one."""
        del self.children[child]
        for head in _heads(child.token_ids):
            del self.by_head[head][child]
            if not self.by_head[head]:
                del self.by_head[head]

    def children_like(self, tokens: TokenArray) -> Iterable[LiveNode]:
        """The children, in order of arrival, that begin with the same ``tokens``: one, or ``HEAD_TOKENS``."""
        return self.by_head.get(tokens.tobytes(), ())

    def copy_source(self) -> tuple[LiveNode | None, int]:
        """The sibling with the most computed tokens in common, and how many; none below ``HEAD_TOKENS``."""
        best, max_common = None, 0
        if self.num_tokens < HEAD_TOKENS or self.parent is None:
            return best, max_common
        for sibling in self.parent.children_like(self.token_ids[:HEAD_TOKENS]):
            if sibling is not self and sibling.segment is not None:
                common = min(common_prefix(sibling.token_ids, self.token_ids), sibling.segment.num_written)
                if common > max_common:
                    best, max_common = sibling, common
        return best, max_common


def _heads(tokens: TokenArray) -> list[bytes]:
    """The keys of ``LiveNode.by_head`` for a node of these tokens."""
    return [tokens[:size].tobytes() for size in (1, HEAD_TOKENS) if len(tokens) >= size]


class Forest:
    """All live nodes, below an empty root."""

    def __init__(self) -> None:
        self._root = LiveNode(np.empty(0, np.int32), 0, None, -1)
        self._num_batches = 0

    def nodes(self) -> Iterator[LiveNode]:
        """All live nodes, depth-first, parents first."""
        stack = list(reversed(self._root.children))
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    def graft(self, tree: PromptTree, num_completions: Items[int], fold_cost: FoldCost) -> list[LiveNode]:
        """Add the nodes of a batch's tree that are missing, and return each prompt's node.

        Args:
            tree: The tree to compute on; not changed. Its own siblings are never merged: they may be folded.
            num_completions: Completions of each prompt, for the cost of a node.
            fold_cost: Decides whether what a new node has in common with an older one becomes a node, too.
        """
        batch, self._num_batches = self._num_batches, self._num_batches + 1
        places: list[LiveNode] = []
        rows = tree.sums_below(num_completions)
        for node in tree.nodes:
            parent = places[node.parent] if node.parent >= 0 else self._root
            places.append(self._attach(parent, node.token_ids, batch, rows[node.node_id], fold_cost))
        self._number()
        return [places[node_id] for node_id in tree.prompt_nodes]

    def attach_alone(self, token_ids: TokenArray) -> LiveNode:
        """Add a node for a whole prompt that shares nothing."""
        batch, self._num_batches = self._num_batches, self._num_batches + 1
        node = self._add(self._root, token_ids, batch)
        self._number()
        return node

    def remove(self, node: LiveNode) -> LiveNode | None:
        """Take out a node without children; its parent is returned, None at the top."""
        assert node.parent is not None
        assert not node.children
        node.parent.remove_child(node)
        return None if node.parent is self._root else node.parent

    def _attach(
        self, parent: LiveNode, tokens: TokenArray, batch: int, num_rows: int, fold_cost: FoldCost
    ) -> LiveNode:
        """The node at which ``tokens`` below ``parent`` end."""
        while len(tokens):
            best, common = None, 0
            for child in takewhile(lambda child: child.batch < batch, parent.children_like(tokens[:1])):
                if (shared := common_prefix(child.token_ids, tokens)) > common:
                    best, common = child, shared
            if best is not None and common == best.num_tokens:
                parent, tokens = best, tokens[common:]
                continue
            # A second copy of the common tokens against one more node: the cost of folding.
            if (
                common < len(tokens)
                and fold_cost.node_cost(common, num_rows) < 2 * fold_cost.token_cost * common
            ):
                parent, tokens = self._add(parent, tokens[:common], batch), tokens[common:]
            return self._add(parent, tokens, batch)
        return parent

    def _add(self, parent: LiveNode, tokens: TokenArray, batch: int) -> LiveNode:
        node = LiveNode(tokens, parent.start + parent.num_tokens, parent, batch)
        parent.add_child(node)
        return node

    def _number(self) -> None:
        """Number depth-first; 0 is for a node that is above all others."""
        first = int(len(self._root.children) > 1)
        for order, node in enumerate(self.nodes(), start=first):
            node.order = order
            if node.segment is not None:
                node.segment.order = order
