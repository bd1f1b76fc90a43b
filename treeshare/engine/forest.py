"""The live tree: nodes come with requests and go when nobody needs them.

Running rows keep their segments for life, so what arrives later never changes their bits: where a new prompt
overlaps a live node only in part, the overlap's KV is copied, not split off.
"""

from __future__ import annotations

from collections import Counter
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
    from treeshare.engine.sequence import Sequence
    from treeshare.kv import Segment
    from treeshare.tree import PromptTree
    from treeshare.tree.tokens import TokenArray


HEAD_TOKENS = 16
"""Fewest tokens in common for which KV is copied from another node: the smallest chunk of a prompt."""


@dataclass(eq=False, slots=True)
class LiveNode:
    """A segment of prompt tokens that requests share.

    Attributes:
        token_ids: Its tokens, at least one but for the forest's root.
        start: Position of the first in the prompt.
        parent: The node above; None for the forest's root.
        batch: Which batch of requests brought it.
        order: Depth-first rank in the forest, renumbered when nodes come.
        children: Nodes below, in order of arrival (a dict for quick removal).
        by_head: The same by their first token, and by their first ``HEAD_TOKENS``, as bytes.
        segment: Its KV, or None while it has none.
        logits: ``[vocab_size]`` after its last token, while completions are to start from there.
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
        """The lower, the less its KV is missed: completions to come need it, or it was used lately."""
        return self.num_unfinished > 0, self.last_used

    def adopt(self, child: LiveNode) -> None:
        """Take in a child."""
        self.children[child] = None
        for head in _heads(child.token_ids):
            self.by_head.setdefault(head, {})[child] = None

    def disown(self, child: LiveNode) -> None:
        """Let go of a child."""
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
        best, most = None, 0
        if self.num_tokens < HEAD_TOKENS or self.parent is None:
            return best, most
        for sibling in self.parent.children_like(self.token_ids[:HEAD_TOKENS]):
            if sibling is not self and sibling.segment is not None:
                common = min(common_prefix(sibling.token_ids, self.token_ids), sibling.segment.num_written)
                if common > most:
                    best, most = sibling, common
        return best, most


def _heads(tokens: TokenArray) -> list[bytes]:
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
        """Add the nodes of a batch's tree, as far as they are not there, and return each prompt's node.

        Args:
            tree: The tree to compute on; not changed. Its own siblings are never merged: they may be folded.
            num_completions: Completions of each prompt, for the cost of a node.
            fold_cost: Whether what a new node has in common with one that is there becomes a node, too.
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
        """A node of its own for a whole prompt, shared with nobody."""
        batch, self._num_batches = self._num_batches, self._num_batches + 1
        node = self._add(self._root, token_ids, batch)
        self._number()
        return node

    def remove(self, node: LiveNode) -> LiveNode | None:
        """Take out a node without children; its parent is returned, None at the top."""
        assert node.parent is not None
        assert not node.children
        node.parent.disown(node)
        return None if node.parent is self._root else node.parent

    def check_counters(self, waiting: Items[Sequence], with_row: Items[Sequence]) -> None:
        """Assert that every node counts the sequences at or below it right."""
        unfinished, admitted, unstarted = Counter[LiveNode](), Counter[LiveNode](), Counter[LiveNode]()
        for sequences, has_row in ((waiting, False), (with_row, True)):
            for sequence in sequences:
                count = len(sequence.completions)
                assert count, "a sequence is for nobody"
                unstarted[sequence.live.node] += count * (not sequence.token_ids)
                for above in sequence.live.node.path():
                    unfinished[above] += count
                    admitted[above] += count * has_row
        for node in self.nodes():
            counters = (node.num_unfinished, node.num_admitted, node.num_unstarted)
            assert counters == (unfinished[node], admitted[node], unstarted[node]), "a node counts wrong"
            assert node.num_held == sum(child.segment is not None for child in node.children)
            assert node.segment is not None or not node.num_admitted, "a row's prompt has lost its KV"
            assert node.segment is not None or node.num_unfinished or node.children, "a node is for nobody"

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
            # Two copies of the overlap against one node more: the cost of folding.
            if (
                common < len(tokens)
                and fold_cost.node_cost(common, num_rows) < 2 * fold_cost.token_cost * common
            ):
                parent, tokens = self._add(parent, tokens[:common], batch), tokens[common:]
            return self._add(parent, tokens, batch)
        return parent

    def _add(self, parent: LiveNode, tokens: TokenArray, batch: int) -> LiveNode:
        node = LiveNode(tokens, parent.start + parent.num_tokens, parent, batch)
        parent.adopt(node)
        return node

    def _number(self) -> None:
        """Number depth-first; 0 is for a node that is above all others."""
        first = int(len(self._root.children) > 1)
        for order, node in enumerate(self.nodes(), start=first):
            node.order = order
            if node.segment is not None:
                node.segment.order = order
