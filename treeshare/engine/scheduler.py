"""What the next step computes: which completions get a row, which prompts are computed, who has to wait.

Requests are admitted in the order of their rank, strictly one after the other, by what they are expected to
need. Room for a step's pages is made before the step: first nodes below which nothing runs lose their KV,
then the youngest sequences are preempted. The oldest always continues, so the engine never stalls.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treeshare.config import MAX_PREFILL_ROWS
from treeshare.engine.expectation import Expectation
from treeshare.engine.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from collections.abc import Sequence as Items

    from treeshare.attention import PrefillChunk
    from treeshare.config import EngineConfig
    from treeshare.engine.forest import LiveNode
    from treeshare.engine.residency import Residency
    from treeshare.engine.sequence import Completion, LiveRequest, Sequence


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step computes.

    Attributes:
        chunks: Parts of prompts with their nodes, depth-first.
        rows: Sequences that compute the KV of a token each, depth-first.
        starts: Whether completions whose prompt is computed draw their first token in this step.
        num_preemptions: Sequences that have lost their KV since the last plan.
        is_full: Whether completions wait for a row.
    """

    chunks: list[tuple[LiveNode, PrefillChunk]]
    rows: list[Sequence]
    starts: bool
    num_preemptions: int
    is_full: bool

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt tokens that are computed."""
        return sum(chunk.end - chunk.start for _, chunk in self.chunks)


class Scheduler:
    """Admission, preemption and the choice of what a step computes.

    Args:
        residency: Which nodes hold KV.
        config: Rows and sizes.
        max_rows: Maximum number of rows of a step, prompt tokens and decoding rows together.
        max_logits_rows: Maximum number of rows of a step whose logits are wanted.
        max_scored_rows: Maximum number of them that are prompts' for their log-probabilities.

    Attributes:
        waiting: Sequences without a row, the next one last.
        admitted: Sequences with a row whose prompt is being computed.
        running: Sequences that decode, depth-first.
        pace: How many prompt tokens a step takes.
    """

    def __init__(
        self,
        residency: Residency,
        config: EngineConfig,
        *,
        max_rows: int,
        max_logits_rows: int,
        max_scored_rows: int = MAX_PREFILL_ROWS,
    ) -> None:
        self._residency, self._store = residency, residency.store
        self._max_rows, self._page_size = max_rows, config.page_size
        self._max_logits_rows = max_logits_rows
        self._max_scored_rows = max(max_scored_rows, config.prefill_chunk)
        most_drawing = max(max_logits_rows - config.prefill_chunk, 1)  # a chunk's rows may want logits, too
        self._max_num_seqs = min(config.max_num_seqs, max_rows, most_drawing)
        self.waiting: list[Sequence] = []
        self.admitted: list[Sequence] = []
        self.running: list[Sequence] = []
        self.pace = Pace(config.prefill_chunk)
        self._expected = Expectation(self._store.tables)
        self._mixes = False  # prompts are computed beside decoding rows
        self._num_preemptions = 0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.admitted or self.running)

    def add(self, sequences: Items[Sequence]) -> None:
        """Queue the completions of placed requests; one without completions only belongs to the tree."""
        self._mixes = not self.is_idle
        for sequence in sequences:
            if sequence.completions:
                self._queue(sequence)
        self._residency.expect([(s.live.node, len(s.completions)) for s in sequences])

    # -- a step --

    def schedule(self) -> StepPlan:
        """Choose what the next step computes, and make room for its KV.

        Requests that came together compute their prompts first: a token costs less in a full batch. Prompts
        that come while others decode are computed beside them, so few at a time that a step stays short.
        """
        self._admit_waiting()
        self._mixes |= self.pace.is_live and bool(self.running)
        rows: list[Sequence] = []
        if self._mixes or not self._residency.is_prefilling:
            self._make_room()
            rows = list(self.running)
        num_logits = self._max_logits_rows - len(rows) - len(self.admitted)
        chunks = self._residency.next_chunks(
            self._max_prompt_rows(len(rows)), min(self._max_scored_rows, num_logits)
        )
        num_preemptions, self._num_preemptions = self._num_preemptions, 0
        plan = StepPlan(
            chunks=chunks,
            rows=rows,
            starts=self._mixes or not self._residency.is_prefilling,
            num_preemptions=num_preemptions,
            is_full=bool(self.waiting),
        )
        self.pace.note(len(rows) + plan.num_prompt_tokens)
        return plan

    def take_starting(self) -> list[Sequence]:
        """Take out the admitted sequences whose prompt is computed: they draw their first token.

        Those that have drawn some before they lost their row are put among the running ones instead.
        """
        ready = {sequence for sequence in self.admitted if self._is_ready(sequence)}
        starting = [sequence for sequence in self.admitted if sequence in ready and not sequence.token_ids]
        self.running += [sequence for sequence in self.admitted if sequence in ready and sequence.token_ids]
        self.admitted = [sequence for sequence in self.admitted if sequence not in ready]
        return starting

    def go_on(self, drew: Collection[Sequence], going_on: Items[Sequence]) -> None:
        """Replace the sequences that drew a token by those of them that continue, depth-first."""
        running = [sequence for sequence in self.running if sequence not in drew]
        self.running = sorted([*running, *going_on], key=lambda sequence: sequence.segment.order)

    def finish(self, live: LiveRequest, completion: Completion) -> None:
        """A completion that had a row has ended: give back its row, and the nodes no longer needed."""
        self._expected.note_end(len(completion.token_ids))
        live.num_unfinished -= 1
        self._residency.forget(live.node, 1, had_row=True)

    def cancel(self, live: LiveRequest, indices: Iterable[int]) -> int:
        """End completions without a result; returns how many of them were not finished."""
        chosen, num_cancelled = set(indices), 0
        for queue, had_row in ((self.waiting, False), (self.admitted, True), (self.running, True)):
            for sequence in [s for s in queue if s.live is live]:
                kept = [index for index in sequence.completions if index not in chosen]
                count = len(sequence.completions) - len(kept)
                if not kept:
                    sequence.drop_kv(self._store)
                    queue.remove(sequence)
                sequence.completions = kept or sequence.completions
                if not sequence.token_ids:
                    self._residency.note_started(live.node, count)
                live.num_unfinished -= count
                self._residency.forget(live.node, count, had_row=had_row)
                num_cancelled += count
        return num_cancelled

    def drop_logits(self) -> None:
        """Drop all logits, because weights have changed; those that are needed are computed again."""
        self._residency.drop_logits()
        for sequence in self.admitted:
            if not sequence.token_ids:
                self._residency.want_logits(sequence.live.node)

    def drop_kv(self) -> None:
        """Drop all KV, that of nodes included, because the weights it depends on have changed."""
        for sequence in (*self.admitted, *self.running):
            self._preempt(sequence)
        self._residency.drop_kv()

    def check_invariants(self) -> None:
        """Assert that nodes and pages are owned as sequences say; tests call it after every step."""
        self._residency.check_invariants(self.waiting, [*self.admitted, *self.running])
        tables = {sequence: sequence.pages for sequence in self.running if sequence.pages is not None}
        for pool in range(len(self._store.pools)):
            users = Counter(page for table in tables.values() for page in table.held(pool))
            assert all(page.num_users == count for page, count in users.items()), "users are miscounted"
        for sequence in self.running:
            held = sequence.num_pages * self._page_size
            assert sequence.num_computed <= held < sequence.num_computed + self._page_size
            assert sequence.num_computed < len(sequence.token_ids), "a row has nothing to compute"

    # -- admission --

    def _admit_waiting(self) -> None:
        """Admit as many completions as rows and bytes allow; make the segments they need."""
        new_nodes: dict[LiveNode, None] = {}
        free_rows = self._free_rows() if self.waiting else 0
        left = self._free_bytes() if free_rows > 0 else 0
        while self.waiting and free_rows > 0 and len(self.admitted) + len(self.running) < self._max_num_seqs:
            head = self.waiting[-1]
            path = head.live.node.path()
            missing = [node for node in path if node.segment is None and node not in new_nodes]
            node_bytes = sum(self._store.segments.bytes_of(node.num_tokens) for node in missing)
            row_bytes = self._expected.page_bytes(head)
            if left < node_bytes + row_bytes:
                freed = self._residency.reclaim(node_bytes + row_bytes - left, keep=path)
                left += freed
                if not freed:
                    break
                continue
            completion_bytes = row_bytes * self._expected.rows_per_completion
            by_bytes = int((left - node_bytes) / completion_bytes) if row_bytes else free_rows
            count = min(len(head.completions), free_rows, by_bytes)
            self._admit(head, count)
            new_nodes |= dict.fromkeys(missing)
            left -= node_bytes + self._expected.rows(count) * row_bytes
            free_rows -= count
        self._residency.make_segments(list(new_nodes))
        assert self.admitted or self.running or not self.waiting, "the next completion always fits alone"

    def _free_rows(self) -> int:
        """Completions that are expected to fit into the free rows, by the recent rows per completion."""
        if self.running:
            self._expected.note_rows(len(self.running), sum(len(s.completions) for s in self.running))
        num_starting = sum(len(sequence.completions) for sequence in self.admitted)
        rows_per_completion = self._expected.rows_per_completion
        rows = self._max_num_seqs - len(self.running) - rows_per_completion * num_starting
        return int(rows / rows_per_completion)

    def _free_bytes(self) -> int:
        """Bytes that are free and that no sequence with a row is expected to need."""
        return self._store.free_bytes - self._expected.missing_bytes((*self.admitted, *self.running))

    def _admit(self, head: Sequence, count: int) -> None:
        """Give a row to some completions of the sequence that is next, or to all."""
        takes_all = count == len(head.completions)
        admitted = self.waiting.pop() if takes_all else head.take(head.completions[:count])
        self._residency.admit(head.live.node, count)
        self.admitted.append(admitted)
        if head.live.lacks_prompt_logprobs:
            self._residency.scores.want(head.live)
        if not admitted.token_ids:
            self._residency.want_logits(head.live.node)

    def _is_ready(self, sequence: Sequence) -> bool:
        """Whether an admitted sequence can continue from its prompt."""
        node = sequence.live.node
        if sequence.live.lacks_prompt_logprobs and not self._residency.scores.finish(sequence.live):
            return False
        return self._residency.is_computed(node) if sequence.token_ids else node.logits is not None

    # -- rows and pages --

    def _max_prompt_rows(self, num_decoding: int) -> int:
        """Maximum number of prompt tokens in a step beside ``num_decoding`` rows."""
        num_starting = sum(self._expected.rows(len(sequence.completions)) for sequence in self.admitted)
        return min(self.pace.prompt_rows(num_decoding, num_starting), self._max_rows - num_decoding)

    def _make_room(self) -> None:
        """Give each row a page for the token that it computes; where rows or bytes are too few, preempt.

        A row that needs one gives back first what it sees no more.
        """
        tables = self._store.tables
        while len(self.admitted) + len(self.running) > self._max_num_seqs:
            self._preempt(self._youngest())
        while True:
            needing = [s for s in self.running if s.num_computed == s.num_pages * self._page_size]
            for sequence in needing:
                if sequence.pages is None:
                    sequence.pages = tables.new()
                tables.forget(sequence.pages, sequence.num_computed)
            missing = len(needing) * tables.page_bytes - self._store.free_bytes
            if missing <= 0:
                break
            if not self._residency.reclaim(missing):
                self._preempt(self._youngest())
        for sequence in needing:
            if sequence.pages is not None:
                tables.grow(sequence.pages)

    def _youngest(self) -> Sequence:
        return max((*self.admitted, *self.running), key=lambda sequence: sequence.priority)

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's row and KV; it waits, and computes its tokens again when it is admitted again."""
        (self.running if sequence in self.running else self.admitted).remove(sequence)
        self._num_preemptions += bool(sequence.num_pages)
        sequence.drop_kv(self._store)
        self._residency.withdraw(sequence.live.node, len(sequence.completions))
        self._queue(sequence)

    def _queue(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=lambda s: tuple(-place for place in s.priority))
