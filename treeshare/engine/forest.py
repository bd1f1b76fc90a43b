"""The live tree: nodes are added with requests and removed when nothing needs them.

A row keeps its segments as long as it runs, so requests that come later never change its bits: where a new
prompt shares only a part of a live node, that part's KV is copied, and the node is not split.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from treeshare.engine.node_index import NodeIndex
from treeshare.tree.radix import common_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Sequence as Items

    from torch import Tensor

    from treeshare.config import FoldCost
    from treeshare.engine.node_scores import NodeScores
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
        order: Its place depth-first: it sorts after its parent's and before that of later siblings. Empty
            for a node that is above all others.
        number: Its place among its siblings; rising, with gaps where nodes were removed.
        children: Nodes below, in order of arrival (a dict for quick removal).
        num_children: Children that it ever had.
        index: The children by their tokens, those of the batch that is being grafted not yet among them.
        computed: The children that hold computed KV, by their tokens.
        segment: Its KV, or None while it has none.
        logits: ``[vocab_size]`` after its last token, while completions wait to start from there.
        num_unfinished: Completions at or below it that are not finished.
        num_admitted: Those of them that have a row; a node without any may lose its KV.
        num_unstarted: Completions still to start from its last token.
        num_held: Children that have KV.
        last_used: Step in which a completion below it last ended.
        scores: Log-probabilities of its tokens, where prompts were asked for theirs.
    """

    token_ids: TokenArray
    start: int
    parent: LiveNode | None
    number: int = 0
    order: tuple[int, ...] = ()
    children: dict[LiveNode, None] = field(default_factory=dict)
    num_children: int = 0
    index: NodeIndex[LiveNode] = field(default_factory=lambda: NodeIndex())
    computed: NodeIndex[LiveNode] = field(default_factory=lambda: NodeIndex())
    segment: Segment | None = None
    logits: Tensor | None = None
    num_unfinished: int = 0
    num_admitted: int = 0
    num_unstarted: int = 0
    num_held: int = 0
    last_used: int = 0
    scores: NodeScores | None = None

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

    def scored_rows(self, start: int, end: int) -> range:
        """Those of its rows in ``[start, end)`` whose logits its scores lack."""
        return range(0) if self.scores is None else self.scores.rows(self.num_tokens, start, end)

    @property
    def is_idle(self) -> bool:
        """Whether it has KV, and no row and no child's KV needs it."""
        return self.segment is not None and not self.num_admitted and not self.num_held

    @property
    def idle_order(self) -> tuple[bool, int]:
        """Order of eviction, lowest first: nodes that no completion needs, then the least recently used."""
        return self.num_unfinished > 0, self.last_used

    def add_child(self, child: LiveNode) -> None:
        """Put a node below this one, after the others."""
        assert child.parent is self
        self.num_children += 1
        child.number = self.num_children
        child.order = tuple(node.number for node in child.path())
        self.children[child] = None

    def remove_child(self, child: LiveNode) -> None:
        """Take out a node below this one."""
        del self.children[child]
        self.index.remove(child)
        self.computed.remove(child)

    def set_order(self, order: tuple[int, ...]) -> None:
        """Give it and its KV another place among its siblings; the order of those below does not change."""
        self.order = order
        if self.segment is not None:
            self.segment.order = order

    def note_computed(self) -> None:
        """Its KV may be copied from, as far as it is written."""
        if self.parent is not None:
            self.parent.computed.add(self)

    def drop_segment(self) -> Segment | None:
        """Take its KV, logits and scores away; returns the KV that it had."""
        segment, self.segment, self.logits, self.scores = self.segment, None, None, None
        if segment is not None and self.parent is not None:
            self.parent.num_held -= 1
            self.parent.computed.remove(self)
        return segment

    def copy_source(self) -> tuple[LiveNode | None, int]:
        """The sibling with the most computed tokens in common, and how many; none below ``HEAD_TOKENS``."""
        best, max_common = None, HEAD_TOKENS - 1
        if self.num_tokens < HEAD_TOKENS or self.parent is None:
            return None, 0
        for neighbours in self.parent.computed.neighbours(self.token_ids):
            for sibling in neighbours:  # the further away, the less they have in common
                common = common_prefix(sibling.token_ids, self.token_ids)
                if common <= max_common:
                    break
                if sibling is not self and sibling.segment is not None:
                    common = min(common, sibling.segment.num_written)
                    if common > max_common:
                        best, max_common = sibling, common
        return best, max_common if best else 0


class Forest:
    """All live nodes, below an empty root."""

    def __init__(self) -> None:
        self._root = LiveNode(np.empty(0, np.int32), 0, None)
        self._above_all: LiveNode | None = None  # a single node at the top: its order is empty

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
        places: list[LiveNode] = []
        added: list[LiveNode] = []
        rows = tree.sums_below(num_completions)
        for node in tree.nodes:
            parent = places[node.parent] if node.parent >= 0 else self._root
            places.append(self._attach(parent, node.token_ids, added, rows[node.node_id], fold_cost))
        self._index(added)
        return [places[node_id] for node_id in tree.prompt_nodes]

    def attach_alone(self, token_ids: TokenArray) -> LiveNode:
        """Add a node for a whole prompt that shares nothing."""
        added: list[LiveNode] = []
        node = self._add(self._root, token_ids, added)
        self._index(added)
        return node

    def remove(self, node: LiveNode) -> LiveNode | None:
        """Take out a node without children; its parent is returned, None at the top."""
        assert node.parent is not None
        assert not node.children
        node.parent.remove_child(node)
        return None if node.parent is self._root else node.parent

    def _attach(
        self,
        parent: LiveNode,
        tokens: TokenArray,
        added: list[LiveNode],
        num_rows: int,
        fold_cost: FoldCost,
    ) -> LiveNode:
        """The node at which ``tokens`` below ``parent`` end; nodes that are made for it go to ``added``."""
        while len(tokens):
            common = parent.index.longest_common(tokens)
            whole = parent.index.get(tokens[:common])
            if whole is not None:
                parent, tokens = whole, tokens[common:]
                continue
            # A second copy of the common tokens against one more node: the cost of folding.
            if (
                common < len(tokens)
                and fold_cost.node_cost(common, num_rows) < 2 * fold_cost.token_cost * common
            ):
                parent, tokens = self._add(parent, tokens[:common], added), tokens[common:]
            return self._add(parent, tokens, added)
        return parent

    def _add(self, parent: LiveNode, tokens: TokenArray, added: list[LiveNode]) -> LiveNode:
        node = LiveNode(tokens, parent.start + parent.num_tokens, parent)
        parent.add_child(node)
        added.append(node)
        return node

    def _index(self, added: list[LiveNode]) -> None:
        """From now on prompts find these nodes; one that is above all others is known by its order."""
        for node in added:
            assert node.parent is not None
            node.parent.index.add(node)
        tops = self._root.children
        alone = next(iter(tops)) if len(tops) == 1 else None
        if self._above_all is not alone:
            if self._above_all is not None:
                self._above_all.set_order((self._above_all.number,))
            if alone is not None:
                alone.set_order(())
            self._above_all = alone
