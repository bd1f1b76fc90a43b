"""The step loop: admit, prefill, decode, sample, retire."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from treeshare.attention import DecodeRow, build_layout, make_backend
from treeshare.config import default_kv_budget_bytes
from treeshare.engine.plan import RunPlan
from treeshare.engine.scheduler import Scheduler
from treeshare.engine.stats import EngineStats
from treeshare.engine.token_step import BOOKKEEPING, RowBatch, TokenStep
from treeshare.kv import KVStore
from treeshare.models import ModelAdapter, NoAttention, TreeStep
from treeshare.stopwatch import REST, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Generator
    from collections.abc import Sequence as Items

    from torch import Tensor

    from treeshare.attention import BatchLayout, PrefillChunk
    from treeshare.config import EngineConfig
    from treeshare.engine.scheduler import Admission
    from treeshare.engine.sequence import Completion, Request, Sequence
    from treeshare.engine.token_step import Observer
    from treeshare.models import LoadedModel, StepAttention


class Engine:
    """Generates completions for a batch of requests as one tree.

    Args:
        loaded: A loaded model.
        config: See ``EngineConfig``.
        check_invariants: Poison unused KV and check the store after every step (tests).

    Attributes:
        stats: What the last run measured of itself.
        kv_budget_bytes: Most bytes of KV held at once.
        stopwatch: Where the time went since it was restarted; off unless ``config.profile``.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, *, check_invariants: bool = False) -> None:
        self.loaded = loaded
        self.config = config
        self.stats = EngineStats()
        self.kv_budget_bytes = config.kv_budget_bytes or default_kv_budget_bytes()
        self.check_invariants = check_invariants
        self.stopwatch = Stopwatch(enabled=config.profile)
        self.adapter = ModelAdapter(
            loaded.model, loaded.fused, max_rows=config.max_num_seqs, stopwatch=self.stopwatch
        )
        self.backend = make_backend(config.backend, loaded.geometry, self.stopwatch)

    def run(
        self, requests: Items[Request], *, observe: Observer | None = None
    ) -> Generator[Completion, None, None]:
        """Generate; yields each completion as it finishes. Leaving the generator early frees everything.

        Args:
            requests: What to run; ``Completion.request_index`` refers to it. One without completions still
                belongs to the tree: a resumed run computes on the same nodes as an undisturbed one.
            observe: Called for every token drawn.

        Raises:
            ConfigError: If a prompt is empty, too long, or has token ids the model does not know.
            BudgetError: If the KV budget does not hold the longest prompt with one completion.
        """
        self.stopwatch.lap(REST)
        return _Run(self, RunPlan.make(self.loaded, self.config, requests), observe).steps()


class _Run:
    """The state of one call of ``Engine.run``."""

    def __init__(self, engine: Engine, plan: RunPlan, observe: Observer | None) -> None:
        self.engine, self.plan = engine, plan
        self.config, self.stats, self.stopwatch = engine.config, EngineStats(), engine.stopwatch
        engine.stats = self.stats
        self.stats.num_completions = plan.num_completions
        self.stats.logical_tokens, self.stats.unique_tokens = plan.logical_tokens, plan.unique_tokens
        self.widths = engine.adapter.run_widths(num_prompt_tokens=plan.unique_tokens, num_rows=plan.num_rows)
        self.store = KVStore(
            engine.loaded.geometry,
            budget_bytes=engine.kv_budget_bytes,
            page_size=self.config.page_size,
            max_pages=plan.max_pages(engine.loaded.geometry, engine.kv_budget_bytes),
            poison=engine.check_invariants,
        )
        self.scheduler = Scheduler(plan, self.store, self.config)
        self.token_step = TokenStep(engine.loaded, plan, self.store, observe, engine.stopwatch)
        self.running: list[Sequence] = []
        self.admitted: list[Admission] = []
        self.prompt_logits: dict[int, Tensor] = {}

    def steps(self) -> Generator[Completion, None, None]:
        """The step loop."""
        started = time.perf_counter()
        self.stopwatch.lap("planning")
        try:
            while self.running or self.admitted or self.scheduler.has_waiting:
                self.admitted += self.scheduler.admit()
                self._prefill(self.scheduler.prefill_chunks(self.widths.prefill[-1]))
                if self.scheduler.is_prefilling:  # full batches of rows to decode cost least per token
                    continue
                finished = self._sample([*self._decode(), *self._start()])
                for completion in finished:
                    self.scheduler.finish(completion.request_index)
                self.stats.wall_s = time.perf_counter() - started
                self.stats.peak_kv_bytes = self.store.peak_bytes
                if self.engine.check_invariants:
                    self.store.check_invariants()
                yield from finished
                self.stopwatch.lap(BOOKKEEPING)
            self.store.check_empty()
        finally:  # an interrupt may come anywhere, also between a page's owners
            self.store.clear()

    def _prefill(self, chunks: list[PrefillChunk]) -> None:
        """Compute prompt tokens; keep the logits from which completions will start."""
        if not chunks:
            return
        started = time.perf_counter()
        self.stopwatch.enter("prefill", before="scheduling")
        layout = build_layout(self.store, chunks, [])
        nodes = self.plan.tree.nodes
        tokens = [nodes[c.segment.order].token_ids[c.start : c.end] for c in chunks]
        ends = {
            chunk.segment.order: chunk.last_row - 1
            for chunk in layout.causal
            if chunk.end == chunk.segment.num_tokens and self.scheduler.awaits_logits(chunk.segment.order)
        }
        logits = self.engine.adapter.forward(
            np.concatenate(tokens),
            layout.positions,
            self._attention(layout),
            list(ends.values()),
            body_widths=self.widths.prefill,
            head_widths=self.widths.head,
        )
        self.prompt_logits.update({node: row.clone() for node, row in zip(ends, logits, strict=True)})
        self.stopwatch.enter("between", before=BOOKKEEPING)
        self.stats.prefilled_tokens += layout.num_rows
        self.stats.prefill_s += time.perf_counter() - started

    def _decode(self) -> list[RowBatch]:
        """Compute the last token of every running sequence."""
        if not self.running:
            return []
        started = time.perf_counter()
        self.stopwatch.enter("decode", before="scheduling")
        for sequence in self.running:
            if sequence.num_private % self.config.page_size == 0:
                sequence.pages.append(self.store.new_page())
        rows = [DecodeRow(s.segment, s.pages, s.num_private) for s in self.running]
        layout = build_layout(self.store, [], rows, sharing=self.config.sharing)
        logits = self.engine.adapter.forward(
            [sequence.token_ids[-1] for sequence in self.running],
            layout.positions,
            self._attention(layout),
            range(len(rows)),
            body_widths=self.widths.decode,
            head_widths=self.widths.head,
        )
        self.stopwatch.enter("between", before=BOOKKEEPING)
        self.stats.num_steps += 1
        self.stats.num_rows += len(rows)
        self.stats.decode_s += time.perf_counter() - started
        return [RowBatch(logits, [[sequence] for sequence in self.running])]

    def _attention(self, layout: BatchLayout) -> StepAttention:
        """What attention does in a step; the layout is made by now."""
        self.stopwatch.lap("layout")
        if self.config.attention == "off":
            return NoAttention()
        return TreeStep(self.engine.backend, layout, self.stopwatch)

    def _start(self) -> list[RowBatch]:
        """Begin the admitted completions whose prompt is computed, from the logits of its last token."""
        ready = [admission for admission in self.admitted if admission.node_id in self.prompt_logits]
        if not ready:
            return []
        self.admitted = [admission for admission in self.admitted if admission not in ready]
        logits = torch.stack([self.prompt_logits[admission.node_id] for admission in ready])
        sequences = [self._new_sequences(admission) for admission in ready]
        for admission in ready:
            self.scheduler.start(admission.node_id, len(admission.completions))
        for node in {admission.node_id for admission in ready}:
            if not self.scheduler.awaits_logits(node):
                del self.prompt_logits[node]
        return [RowBatch(logits, sequences)]

    def _new_sequences(self, admission: Admission) -> list[Sequence]:
        lazy = self.config.lazy_divergence
        groups = [admission.completions] if lazy else [[index] for index in admission.completions]
        segment = self.scheduler.segment(admission.node_id)
        return [self.token_step.new_sequence(admission.request_index, segment, group) for group in groups]

    def _sample(self, batches: list[RowBatch]) -> list[Completion]:
        """Draw the next tokens; keeps what goes on, depth-first, and returns what has finished."""
        started = time.perf_counter()
        self.running = []
        finished: list[Completion] = []
        for batch in batches:
            running, ended = self.token_step.run(batch)
            self.running += running
            finished += ended
        self.running.sort(key=lambda sequence: sequence.segment.order)
        self.stats.num_tokens += len(finished) + sum(len(s.completions) for s in self.running)
        self.stats.num_finished += len(finished)
        self.stats.sampling_s += time.perf_counter() - started
        return finished
