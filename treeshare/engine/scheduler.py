"""Which prompts are prefilled and which completions decode in the next step, under the byte budget.

Requests are admitted in depth-first order of the tree, strictly one after the other. Admission reserves all
that a completion may ever need, so the budget is never exceeded and nothing is ever preempted. A node's KV
lives from the first admission below it until the last completion below it has ended.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from treeshare.attention import PrefillChunk
from treeshare.errors import BudgetError
from treeshare.kv import padded_length

if TYPE_CHECKING:
    from collections.abc import Sequence as Items

    from treeshare.config import EngineConfig
    from treeshare.engine.plan import RunPlan
    from treeshare.kv import KVStore, Segment


@dataclass(frozen=True, slots=True)
class Admission:
    """Completions of one request that may start as soon as its prompt is prefilled."""

    request_index: int
    node_id: int
    completions: list[int]


@dataclass(slots=True)
class _Waiting:
    """A request with completions not yet admitted."""

    request_index: int
    node_id: int
    max_pages: int
    pending: list[int] = field(default_factory=list)


class Scheduler:
    """Admission, prefill order and the lifetime of nodes for one run.

    Args:
        plan: The run.
        store: The KV store; segments are made and released here.
        config: Rows and chunk sizes.

    Raises:
        BudgetError: If the budget does not hold one completion of the most demanding request.
    """

    def __init__(self, plan: RunPlan, store: KVStore, config: EngineConfig) -> None:
        self.plan, self.tree, self.store, self.config = plan, plan.tree, store, config
        self._segments: dict[int, Segment] = {}
        self._prefill: list[Segment] = []
        self._num_rows = 0
        self._reserved_pages = 0
        requests, node_of = plan.requests, plan.tree.prompt_nodes
        order = sorted(range(len(requests)), key=lambda index: node_of[index])
        self._waiting = [
            _Waiting(i, node_of[i], plan.pages(i), list(requests[i].completion_indices))
            for i in order
            if requests[i].completion_indices
        ]
        self._waiting.reverse()
        self._unfinished = Counter[int]()
        self._unstarted = Counter[int]()
        for waiting in self._waiting:
            self._unstarted[waiting.node_id] += len(waiting.pending)
            for node in self.tree.path(waiting.node_id):
                self._unfinished[node] += len(waiting.pending)
        self._check_budget()

    @property
    def has_waiting(self) -> bool:
        """Whether completions are still to be admitted."""
        return bool(self._waiting)

    @property
    def is_prefilling(self) -> bool:
        """Whether prompts of admitted completions are still to be computed."""
        return bool(self._prefill)

    def segment(self, node_id: int) -> Segment:
        """The live segment of a node."""
        return self._segments[node_id]

    def awaits_logits(self, node_id: int) -> bool:
        """Whether completions are still to start from the last token of a node."""
        return self._unstarted[node_id] > 0

    def start(self, node_id: int, num_completions: int) -> None:
        """Note that completions have started from the last token of a node."""
        self._unstarted[node_id] -= num_completions

    def admit(self) -> list[Admission]:
        """Admit as many completions as rows and bytes allow; make the segments they need."""
        admissions = self._admit()
        if not admissions and self._num_rows == 0 and self._waiting:
            self.store.shrink_blocks()
            admissions = self._admit()
            assert admissions, "an idle engine can always run the next completion"
        return admissions

    def _admit(self) -> list[Admission]:
        admissions: list[Admission] = []
        nodes: list[int] = []
        planned_bytes = self.store.bytes_in_use + self._unused_reservation()
        while self._waiting and self._num_rows < self.config.max_num_seqs:
            head = self._waiting[-1]
            missing = [
                node for node in self._path(head.node_id) if node not in self._segments and node not in nodes
            ]
            node_bytes = sum(self.store.segment_bytes(self.tree.nodes[node].num_tokens) for node in missing)
            page_bytes = head.max_pages * self.store.page_bytes
            free_bytes = self.store.budget_bytes - planned_bytes - node_bytes
            by_bytes = len(head.pending) if page_bytes == 0 else free_bytes // page_bytes
            count = min(len(head.pending), self.config.max_num_seqs - self._num_rows, by_bytes)
            if free_bytes < 0 or count < 1:
                break
            nodes += missing
            planned_bytes += node_bytes + count * page_bytes
            admissions.append(Admission(head.request_index, head.node_id, head.pending[:count]))
            del head.pending[:count]
            self._num_rows += count
            self._reserved_pages += count * head.max_pages
            if not head.pending:
                self._waiting.pop()
        self._make_segments(nodes)
        return admissions

    def prefill_chunks(self, max_rows: int) -> list[PrefillChunk]:
        """The next chunks, depth-first, that fit into ``max_rows``; marked as written.

        A segment is cut at multiples of one length, so its KV does not depend on what else runs.
        """
        size = min(self.config.prefill_chunk, max_rows)
        room = max_rows
        chunks: list[PrefillChunk] = []
        while self._prefill:
            segment = self._prefill[0]
            start = segment.num_written
            end = min(start + size, segment.num_tokens)
            if end - start > room:
                break
            room -= end - start
            chunks.append(PrefillChunk(segment, start, end))
            segment.num_written = end
            if end == segment.num_tokens:
                self._prefill.pop(0)
        return chunks

    def finish(self, request_index: int) -> None:
        """A completion has ended: give back its row, its reservation, and the nodes no longer needed."""
        self._num_rows -= 1
        self._reserved_pages -= self.plan.pages(request_index)
        for node in reversed(self.tree.path(self.tree.prompt_nodes[request_index])):
            self._unfinished[node] -= 1
            if not self._unfinished[node] and node in self._segments:
                self.store.release(self._segments.pop(node))

    def _unused_reservation(self) -> int:
        """Bytes promised to running completions beyond the pages they hold."""
        return max(self._reserved_pages - self.store.pool.num_live, 0) * self.store.page_bytes

    def _path(self, node_id: int) -> list[int]:
        """The nodes from the root to ``node_id`` that hold tokens."""
        return [node for node in self.tree.path(node_id) if self.tree.nodes[node].num_tokens]

    def _make_segments(self, nodes: Items[int]) -> None:
        """Segments for new nodes, those of one padded length side by side, queued for prefill."""
        lengths = Counter(padded_length(self.tree.nodes[node].num_tokens) for node in nodes)
        for length, count in lengths.items():
            self.store.ensure_places(length, count)
        for node_id in nodes:
            node = self.tree.nodes[node_id]
            parent = self._segments.get(node.parent)
            segment = self.store.new_segment(
                start=node.start, num_tokens=node.num_tokens, order=node_id, parent=parent
            )
            self._segments[node_id] = segment
            self._prefill.append(segment)

    def _check_budget(self) -> None:
        """Refuse before anything runs what could never run."""
        needed = 0
        for waiting in self._waiting:
            path_bytes = sum(
                self.store.segment_bytes(self.tree.nodes[n].num_tokens) for n in self._path(waiting.node_id)
            )
            needed = max(needed, path_bytes + waiting.max_pages * self.store.page_bytes)
        if needed > self.store.budget_bytes:
            raise BudgetError(
                f"kv_budget_bytes: got {self.store.budget_bytes}, expected at least {needed} "
                "(the longest prompt with one completion); raise it or lower max_tokens"
            )
