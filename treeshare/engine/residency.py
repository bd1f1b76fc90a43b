"""Which nodes hold KV, and for how long: placing, computing, evicting, removing.

A node's counters say what needs its KV. Only this module writes them, and it checks them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from treeshare.config import MAX_PREFILL_ROWS
from treeshare.engine.expectation import completion_bytes
from treeshare.engine.forest import Forest, LiveNode
from treeshare.engine.idle_nodes import IdleNodes
from treeshare.engine.prefill_queue import PrefillQueue
from treeshare.engine.prompt_scores import PromptScoring, copy_scores
from treeshare.errors import BudgetError
from treeshare.kv import padded_length

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as Items

    from torch import Tensor

    from treeshare.attention import PrefillChunk
    from treeshare.config import FoldCost
    from treeshare.engine.sequence import Request, Sequence
    from treeshare.kv import KVStore, Segment
    from treeshare.tree import PromptTree


class Residency:
    """The live tree and the KV of its nodes.

    Args:
        store: Where segments are made and released.
        prefill_chunk: Tokens of a node that are computed together.
        keep_nodes: Nodes that nothing needs keep their KV until its bytes are needed.

    Attributes:
        store: As given.
        forest: The live tree.
        scores: Prompts' log-probabilities.
    """

    def __init__(self, store: KVStore, *, prefill_chunk: int, keep_nodes: bool) -> None:
        self.store = store
        self.forest = Forest()
        self._chunk, self._keep_nodes = prefill_chunk, keep_nodes
        self._computing = PrefillQueue(prefill_chunk)
        self.scores = PromptScoring(self._computing)
        self._idle = IdleNodes()
        self._displaced: list[LiveNode] = []  # grafted, then not used: their prompts got nodes of their own
        self._clock = 0  # completions that have ended, for ``LiveNode.last_used``

    # -- placing --

    def check_budget(self, requests: Iterable[tuple[Request, int]]) -> None:
        """Refuse requests that could never run, each given with the maximum tokens of a completion.

        Raises:
            BudgetError: If the budget does not hold the longest prompt with one completion.
        """
        needed = max(
            (
                self.store.segments.bytes_of(len(request.prompt_token_ids))
                + completion_bytes(tokens, self.store.tables)
                for request, tokens in requests
                if request.completion_indices
            ),
            default=0,
        )
        if needed > self.store.budget_bytes:
            raise BudgetError(
                f"kv_budget_bytes: got {self.store.budget_bytes}, expected at least {needed} "
                "(the longest prompt with one completion); raise it or lower max_tokens"
            )

    def place(
        self, tree: PromptTree, requests: Items[Request], max_new_tokens: Items[int], fold_cost: FoldCost
    ) -> list[LiveNode]:
        """The node of each request; the prompts of ``tree`` are the requests'.

        Each node of a path is padded by itself: where the budget does not hold the padded path and one
        completion of ``max_new_tokens``, the prompt gets a node of its own.
        """
        counts = [len(request.completion_indices) for request in requests]
        nodes = self.forest.graft(tree, counts, fold_cost)
        for i, node in enumerate(nodes):
            path_bytes = sum(self.store.segments.bytes_of(above.num_tokens) for above in node.path())
            if path_bytes + completion_bytes(max_new_tokens[i], self.store.tables) > self.store.budget_bytes:
                self._displaced.append(node)
                nodes[i] = self.forest.attach_alone(np.asarray(requests[i].prompt_token_ids, np.int32))
        return nodes

    def expect(self, counts: Items[tuple[LiveNode, int]]) -> None:
        """Completions have come, so many for each node; nodes that none of them needs are removed again."""
        for node, count in counts:
            node.num_unstarted += count
            for above in node.path():
                above.num_unfinished += count
                self._idle.note(above)
        for node in (*self._displaced, *(node for node, count in counts if not count)):
            self._prune(node)
        self._displaced = []

    # -- who needs a node --

    def admit(self, node: LiveNode, count: int) -> None:
        """Completions at a node got a row: its path must keep its KV, and what lacks of that is computed."""
        for above in node.path():
            above.num_admitted += count
            self._computing.add(above)

    def withdraw(self, node: LiveNode, count: int) -> None:
        """Completions at a node lost their row; they will be admitted again."""
        for above in node.path():
            above.num_admitted -= count
            self._idle.note(above)

    def note_started(self, node: LiveNode, count: int) -> None:
        """Completions start from a node's logits, or never will; logits that none waits for are dropped."""
        node.num_unstarted -= count
        if not node.num_unstarted:
            node.logits = None
            self._computing.forget_logits(node)

    def forget(self, node: LiveNode, count: int, *, had_row: bool) -> None:
        """Completions at a node have ended; nodes without any are removed, or stay for later requests.

        Of a prompt that nobody waits for any more no further token is computed.
        """
        self._clock += 1
        for above in reversed(node.path()):
            above.num_unfinished -= count
            above.num_admitted -= count * had_row
            above.last_used = self._clock
            if not above.num_unfinished:
                above.logits = None
                if self._computing.give_up(above) or not self._keep_nodes:
                    self._drop_segment(above)
            self._idle.note(above)
            self._prune(above)

    # -- computing --

    @property
    def is_prefilling(self) -> bool:
        """Whether there are nodes whose KV is being computed."""
        return bool(self._computing)

    def is_computed(self, node: LiveNode) -> bool:
        """Whether the KV of a node's path is stored, or is computed by the step that was planned last."""
        return all(above.segment is not None and above not in self._computing for above in node.path())

    def make_segments(self, nodes: Items[LiveNode]) -> None:
        """Make segments for nodes, parents first, and queue them; equal padded lengths lie side by side."""
        lengths = Counter(padded_length(node.num_tokens) for node in nodes)
        for length, count in lengths.items():
            self.store.segments.reserve(length, count)
        for node in nodes:
            assert node.parent is not None, "the forest's root holds no tokens"
            node.parent.num_held += 1
            node.segment = self.store.segments.new(
                start=node.start, num_tokens=node.num_tokens, order=node.order, parent=node.parent.segment
            )
            self._copy_known(node, node.segment)
            self._computing.add(node)

    def want_logits(self, node: LiveNode) -> None:
        """If a node has its KV but no logits, have its last chunk computed again, to the same bits."""
        if node.logits is None and node.segment is not None and node not in self._computing:
            self._computing.add_for_logits(node)

    def next_chunks(
        self, max_rows: int, max_scored: int = MAX_PREFILL_ROWS
    ) -> list[tuple[LiveNode, PrefillChunk]]:
        """The next chunks that fit: see ``PrefillQueue.take``."""
        return self._computing.take(max_rows, self._copy_known, max_scored)

    def keep_logits(self, node: LiveNode, logits: Tensor) -> None:
        """Keep ``[vocab_size]`` logits after a node's last token: completions will start from them."""
        node.logits = logits

    # -- memory --

    def reclaim(self, num_bytes: int, keep: Items[LiveNode] = ()) -> int:
        """Evict nodes below which nothing runs, to free at least ``num_bytes``; returns the bytes freed."""
        before = self.store.bytes_in_use
        self.store.segments.compact()
        left = num_bytes - (before - self.store.bytes_in_use)
        while left > 0 and (node := self._idle.pop(keep)):
            left -= self.store.segments.bytes_of(node.num_tokens)
            self._drop_segment(node)
        self.store.segments.compact()
        return before - self.store.bytes_in_use

    def drop_logits(self) -> None:
        """Drop all logits and what was found in them: weights have changed."""
        for node in self.forest.nodes():
            node.logits = None
            self.scores.drop(node)

    def drop_kv(self) -> None:
        """Drop the KV of all nodes, because weights have changed; no row may need one."""
        for node in reversed(list(self.forest.nodes())):
            self._drop_segment(node)

    def check_invariants(self, waiting: Items[Sequence], with_row: Items[Sequence]) -> None:
        """Assert that every node's counters match the sequences at or below it."""
        unfinished, admitted, unstarted = Counter[LiveNode](), Counter[LiveNode](), Counter[LiveNode]()
        for sequences, has_row in ((waiting, False), (with_row, True)):
            for sequence in sequences:
                count = len(sequence.completions)
                assert count, "a sequence has no completions"
                unstarted[sequence.live.node] += count * (not sequence.token_ids)
                for above in sequence.live.node.path():
                    unfinished[above] += count
                    admitted[above] += count * has_row
        for node in self.forest.nodes():
            counters = (node.num_unfinished, node.num_admitted, node.num_unstarted)
            assert counters == (unfinished[node], admitted[node], unstarted[node]), "a node is miscounted"
            assert node.num_held == sum(child.segment is not None for child in node.children)
            assert node.segment is not None or not node.num_admitted, "the prompt of a row has no KV"
            assert node.segment is not None or node.num_unfinished or node.children, "a node has no use"
        self._computing.check_invariants(list(self.forest.nodes()))

    def _copy_known(self, node: LiveNode, segment: Segment) -> None:
        """Copy the whole chunks that a sibling has computed by now, but not the last: it gives the logits."""
        source, num_tokens = node.copy_source()
        num_tokens = min(num_tokens, node.num_tokens - 1)
        if source is not None:
            num_tokens = copy_scores(source, node, num_tokens)
        num_tokens -= num_tokens % self._chunk
        if source is not None and source.segment is not None and num_tokens > segment.num_written:
            self.store.segments.copy_tokens(source.segment, segment, num_tokens)
            node.note_computed()

    def _drop_segment(self, node: LiveNode) -> None:
        """Release a node's KV and logits, if it has any; a node that nothing needs is removed."""
        self._computing.remove(node)
        self.store.segments.release(node.drop_segment())
        self._idle.note(node.parent)
        self._prune(node)

    def _prune(self, node: LiveNode | None) -> None:
        """Remove a node that has neither KV nor completions nor children; then its parents likewise."""
        while node is not None and node.segment is None and not node.num_unfinished and not node.children:
            if node.parent is None or node not in node.parent.children:
                return
            node = self.forest.remove(node)
