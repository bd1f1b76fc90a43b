"""Which prompts are prefilled and which completions decode in the next step, under the byte budget.

Requests are admitted in the order of their rank, strictly one after the other, by what they are expected to
need. Room for a step's pages is made before the step: first nodes lose their KV below which nothing runs,
then the youngest sequences give way. The oldest always goes on, so the engine never stalls.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from treeshare.attention import PrefillChunk
from treeshare.engine.expectation import Expectation
from treeshare.engine.forest import Forest
from treeshare.engine.idle_nodes import IdleNodes
from treeshare.errors import BudgetError
from treeshare.kv import padded_length

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as Items

    from torch import Tensor

    from treeshare.config import EngineConfig, FoldCost
    from treeshare.engine.forest import LiveNode
    from treeshare.engine.sequence import Completion, LiveRequest, Request, Sequence
    from treeshare.kv import KVStore, Segment
    from treeshare.tree import PromptTree


class Scheduler:
    """Admission, prefill order, preemption, and the lifetime of nodes.

    Args:
        store: The KV store; segments and pages are made and released here.
        config: Rows and chunk sizes.

    Attributes:
        forest: The live tree.
        waiting: Sequences without a row, the next one last.
        admitted: Sequences with a row whose prompt is being computed.
        running: Sequences that decode, depth-first.
        num_preemptions: How often a sequence lost its KV.
    """

    def __init__(self, store: KVStore, config: EngineConfig) -> None:
        self.store, self.config = store, config
        self.forest = Forest()
        self.waiting: list[Sequence] = []
        self.admitted: list[Sequence] = []
        self.running: list[Sequence] = []
        self._prefill: list[LiveNode] = []
        self.num_preemptions = 0
        self._clock = 0
        self._idle = IdleNodes()
        self._displaced: list[LiveNode] = []
        self._expected = Expectation()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.admitted or self.running)

    @property
    def is_prefilling(self) -> bool:
        """Whether prompts of admitted completions are still to be computed."""
        return bool(self._prefill)

    def check_budget(self, requests: Iterable[tuple[Request, int]]) -> None:
        """Refuse what could never run: requests, each with the most tokens of a completion.

        Raises:
            BudgetError: If the budget does not hold the longest prompt with one completion.
        """
        needed = max(
            (
                self.store.segment_bytes(len(request.prompt_token_ids))
                + self._pages(most) * self.store.page_bytes
                for request, most in requests
                if request.completion_indices
            ),
            default=0,
        )
        if needed > self.store.budget_bytes:
            raise BudgetError(
                f"kv_budget_bytes: got {self.store.budget_bytes}, expected at least {needed} "
                "(the longest prompt with one completion); raise it or lower max_tokens"
            )

    def add(self, sequences: Items[Sequence]) -> None:
        """Queue the completions of placed requests; nodes that turn out to be for nobody go again."""
        for sequence in sequences:
            count, node = len(sequence.completions), sequence.live.node
            node.num_unstarted += count
            for above in node.path():
                above.num_unfinished += count
                self._idle.note(above)
            if count:
                self._queue(sequence)
        for node in (*self._displaced, *(s.live.node for s in sequences if not s.completions)):
            self._prune(node)
        self._displaced = []

    def place(
        self, tree: PromptTree, requests: Items[Request], most: Items[int], fold_cost: FoldCost
    ) -> list[LiveNode]:
        """The node of each request, ``tree``'s prompts being theirs.

        Each node of a path is padded by itself: where the budget does not hold that with one completion of
        ``most`` tokens, the prompt gets a node of its own.
        """
        counts = [len(request.completion_indices) for request in requests]
        nodes = self.forest.graft(tree, counts, fold_cost)
        for i, node in enumerate(nodes):
            path_bytes = sum(self.store.segment_bytes(above.num_tokens) for above in node.path())
            if path_bytes + self._pages(most[i]) * self.store.page_bytes > self.store.budget_bytes:
                self._displaced.append(node)
                nodes[i] = self.forest.attach_alone(np.asarray(requests[i].prompt_token_ids, np.int32))
        return nodes

    # -- admission --

    def admit(self) -> None:
        """Admit as many completions as rows and bytes allow; make the segments they need."""
        new_nodes: dict[LiveNode, None] = {}
        free_rows = self._free_rows() if self.waiting else 0
        left = self.store.free_bytes - self._promised_bytes() if free_rows > 0 else 0
        while (
            self.waiting
            and free_rows > 0
            and len(self.admitted) + len(self.running) < self.config.max_num_seqs
        ):
            head = self.waiting[-1]
            missing = [n for n in head.live.node.path() if n.segment is None and n not in new_nodes]
            node_bytes = sum(self.store.segment_bytes(node.num_tokens) for node in missing)
            row_bytes = self._expected_pages(head) * self.store.page_bytes
            if left < node_bytes + row_bytes:
                freed = self._reclaim(node_bytes + row_bytes - left, keep=head.live.node.path())
                left += freed
                if not freed:
                    break
                continue
            spread_bytes = row_bytes * self._expected.spread
            by_bytes = int((left - node_bytes) / spread_bytes) if row_bytes else free_rows
            count = min(len(head.completions), free_rows, by_bytes)
            self._admit(head, count)
            new_nodes |= dict.fromkeys(missing)
            left -= node_bytes + self._expected.rows(count) * row_bytes
            free_rows -= count
        self._make_segments(list(new_nodes))
        assert self.admitted or self.running or not self.waiting, "the next completion always fits alone"

    def _free_rows(self) -> int:
        """Completions that are expected to fit into the rows, as many sharing one as of late."""
        if self.running:
            self._expected.note_rows(len(self.running), sum(len(s.completions) for s in self.running))
        num_starting = sum(len(sequence.completions) for sequence in self.admitted)
        rows = self.config.max_num_seqs - len(self.running) - self._expected.spread * num_starting
        return int(rows / self._expected.spread)

    def _admit(self, head: Sequence, count: int) -> None:
        takes_all = count == len(head.completions)
        admitted = self.waiting.pop() if takes_all else head.take(head.completions[:count])
        for above in head.live.node.path():
            above.num_admitted += count
        self.admitted.append(admitted)
        if not admitted.token_ids:
            self._want_logits(head.live.node)

    def _want_logits(self, node: LiveNode) -> None:
        """Where a node's KV is there and its logits are not, compute the last chunk again: the same bits."""
        if node.logits is None and node.segment is not None and node not in self._prefill:
            size = self.config.prefill_chunk
            node.segment.num_written = (node.num_tokens - 1) // size * size
            self._prefill.append(node)

    def _make_segments(self, nodes: Items[LiveNode]) -> None:
        """Segments for new nodes, those of one padded length side by side, queued for prefill."""
        lengths = Counter(padded_length(node.num_tokens) for node in nodes)
        for length, count in lengths.items():
            self.store.ensure_places(length, count)
        for node in nodes:
            assert node.parent is not None, "the forest's root holds no tokens"
            node.parent.num_held += 1
            node.segment = self.store.new_segment(
                start=node.start, num_tokens=node.num_tokens, order=node.order, parent=node.parent.segment
            )
            self._copy_known(node, node.segment)
            self._prefill.append(node)

    def _copy_known(self, node: LiveNode, segment: Segment) -> None:
        """Copy the chunks that a sibling has computed by now; some tokens are left, for the logits."""
        source, num_tokens = node.copy_source()
        num_tokens = min(num_tokens, node.num_tokens - 1)
        num_tokens -= num_tokens % self.config.prefill_chunk
        if source is not None and source.segment is not None and num_tokens > segment.num_written:
            self.store.copy_tokens(source.segment, segment, num_tokens)

    # -- a step --

    def prefill_chunks(self, max_rows: int) -> list[tuple[LiveNode, PrefillChunk]]:
        """The next chunks, depth-first, that fit into ``max_rows``; marked as written.

        A segment is cut at multiples of one length, so its KV does not depend on what else runs.
        """
        chunks: list[tuple[LiveNode, PrefillChunk]] = []
        while self._prefill:
            node = self._prefill[0]
            segment = node.segment
            assert segment is not None, "only a node with a place for its KV is queued"
            if not chunks:  # what this step computes is not there yet
                self._copy_known(node, segment)
            start = segment.num_written
            end = min(start + self.config.prefill_chunk, segment.num_tokens)
            if end - start > max_rows:
                break
            max_rows -= end - start
            chunks.append((node, PrefillChunk(segment, start, end)))
            segment.num_written = end
            if end == segment.num_tokens:
                self._prefill.pop(0)
        return sorted(chunks, key=lambda item: (item[0].order, item[1].start))

    def make_room(self) -> None:
        """Give every running sequence a page for the token that its row computes; too many rows give way."""
        size = self.config.page_size
        while len(self.admitted) + len(self.running) > self.config.max_num_seqs:
            self._preempt(self._youngest())
        while True:
            needing = [s for s in self.running if s.num_computed == len(s.pages) * size]
            missing = len(needing) * self.store.page_bytes - self.store.free_bytes
            if missing <= 0:
                break
            if not self._reclaim(missing):
                self._preempt(self._youngest())
        for sequence in needing:
            sequence.pages.append(self.store.new_page())

    @property
    def num_starting(self) -> int:
        """Rows that the admitted completions are expected to take."""
        return sum(self._expected.rows(len(sequence.completions)) for sequence in self.admitted)

    def _youngest(self) -> Sequence:
        return max((*self.admitted, *self.running), key=lambda sequence: sequence.priority)

    def drop_logits(self) -> None:
        """Let go of logits that changed weights would not give."""
        for node in self.forest.nodes():
            node.logits = None
        for sequence in self.admitted:
            if not sequence.token_ids:
                self._want_logits(sequence.live.node)

    def drop_kv(self) -> None:
        """Take the KV from everything, also from nodes: it depends on weights that have changed."""
        for sequence in (*self.admitted, *self.running):
            self._preempt(sequence)
        for node in reversed(list(self.forest.nodes())):
            self._drop_segment(node)

    def start_ready(self) -> list[tuple[Sequence, Tensor]]:
        """Take out the admitted sequences whose prompt is computed: they run.

        Returns:
            Those that draw their first token now, each with the logits ``[vocab_size]`` to draw it from; the
            others, which have drawn some before, are put among the running ones.
        """
        ready = [s for s in self.admitted if self._is_ready(s)]
        self.admitted = [s for s in self.admitted if s not in ready]
        self.running += [s for s in ready if s.token_ids]
        starting: list[tuple[Sequence, Tensor]] = []
        for sequence in ready:
            node = sequence.live.node
            if not sequence.token_ids and node.logits is not None:
                starting.append((sequence, node.logits))
        for sequence, _ in starting:
            self._note_started(sequence.live.node, len(sequence.completions))
        return starting

    def finish(self, live: LiveRequest, completion: Completion) -> None:
        """A completion that had a row has ended: give back its row, and the nodes no longer needed."""
        self._expected.note_end(len(completion.token_ids))
        self._forget(live, 1, had_row=True)

    def cancel(self, live: LiveRequest, indices: Iterable[int]) -> int:
        """End completions without a result; returns how many of them were not finished."""
        chosen, num_cancelled = set(indices), 0
        for queue, had_row in ((self.waiting, False), (self.admitted, True), (self.running, True)):
            for sequence in [s for s in queue if s.live is live]:
                kept = [index for index in sequence.completions if index not in chosen]
                count = len(sequence.completions) - len(kept)
                if not kept:
                    sequence.drop_kv(self.store)
                    queue.remove(sequence)
                sequence.completions = kept or sequence.completions
                if not sequence.token_ids:
                    self._note_started(live.node, count)
                self._forget(live, count, had_row=had_row)
                num_cancelled += count
        return num_cancelled

    def _note_started(self, node: LiveNode, count: int) -> None:
        """Let go of logits from which nothing is to start any more."""
        node.num_unstarted -= count
        if not node.num_unstarted:
            node.logits = None

    def check_invariants(self) -> None:
        """Assert that the books are right; tests call it after every step."""
        self.forest.check_counters(self.waiting, [*self.admitted, *self.running])
        users = Counter(page for sequence in self.running for page in sequence.pages)
        assert all(page.num_users == count for page, count in users.items()), "a page counts its users wrong"
        for sequence in self.running:
            held = len(sequence.pages) * self.config.page_size
            assert sequence.num_computed <= held < sequence.num_computed + self.config.page_size
            assert sequence.num_computed < len(sequence.token_ids), "a row has nothing to compute"

    # -- memory --

    def _queue(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=lambda s: tuple(-place for place in s.priority))

    def _preempt(self, sequence: Sequence) -> None:
        (self.running if sequence in self.running else self.admitted).remove(sequence)
        self.num_preemptions += bool(sequence.pages)
        sequence.drop_kv(self.store)
        for above in sequence.live.node.path():
            above.num_admitted -= len(sequence.completions)
            self._idle.note(above)
        self._queue(sequence)

    def _reclaim(self, num_bytes: int, keep: Items[LiveNode] = ()) -> int:
        """Free at least ``num_bytes``, if nodes below which nothing runs allow it; returns what was freed."""
        before = self.store.bytes_in_use
        self.store.shrink_blocks()
        left = num_bytes - (before - self.store.bytes_in_use)
        while left > 0 and (node := self._idle.pop(keep)):
            left -= self.store.segment_bytes(node.num_tokens)
            self._drop_segment(node)
        self.store.shrink_blocks()
        return before - self.store.bytes_in_use

    def _drop_segment(self, node: LiveNode) -> None:
        if node in self._prefill:
            self._prefill.remove(node)
        if node.segment is not None and node.parent is not None:
            node.parent.num_held -= 1
        self.store.release(node.segment)
        node.segment, node.logits = None, None
        self._idle.note(node.parent)
        self._prune(node)

    def _forget(self, live: LiveRequest, count: int, *, had_row: bool) -> None:
        """Completions of a request are no more; nodes without any go, or stay for later requests."""
        live.num_unfinished -= count
        self._clock += 1
        for node in reversed(live.node.path()):
            node.num_unfinished -= count
            node.num_admitted -= count * had_row
            node.last_used = self._clock
            if not node.num_unfinished:
                node.logits = None
                if not self.config.keep_nodes:
                    self._drop_segment(node)
            self._idle.note(node)
            self._prune(node)

    def _prune(self, node: LiveNode | None) -> None:
        """Take out nodes that have neither KV nor users nor children."""
        while node is not None and node.segment is None and not node.num_unfinished and not node.children:
            if node.parent is None or node not in node.parent.children:
                return
            node = self.forest.remove(node)

    def _is_ready(self, sequence: Sequence) -> bool:
        node = sequence.live.node
        if not sequence.token_ids:
            return node.logits is not None
        return all(above.segment is not None and above not in self._prefill for above in node.path())

    def _pages(self, num_tokens: int) -> int:
        """Private pages of ``num_tokens``; the last token generated needs no KV."""
        return -(-(num_tokens - 1) // self.config.page_size)

    def _expected_pages(self, sequence: Sequence) -> int:
        """Pages of one completion: by the mean length so far, and never less than what it needs next."""
        most = sequence.live.max_new_tokens
        return self._pages(min(most, max(self._expected.tokens(most), len(sequence.token_ids) + 2)))

    def _promised_bytes(self) -> int:
        """Bytes that sequences with a row are expected to need beyond the pages they hold."""
        pages, rows_of = 0, self._expected.rows
        for s in (*self.admitted, *self.running):
            pages += rows_of(len(s.completions)) * max(len(s.pages), self._expected_pages(s)) - len(s.pages)
        return pages * self.store.page_bytes
