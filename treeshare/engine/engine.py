"""The step loop: schedule, run the model, sample, retire."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from treeshare.attention import CpuAttention, DecodeRow, build_layout
from treeshare.config import default_kv_budget_bytes
from treeshare.engine.scheduler import Admission, Scheduler, pages_needed
from treeshare.engine.sequence import Completion, Sequence
from treeshare.engine.stats import EngineStats
from treeshare.errors import ConfigError
from treeshare.kv import KVStore
from treeshare.models import ModelAdapter, NoAttention, TreeStep
from treeshare.sampling import Draws, Sampler, StopChecker, uniforms
from treeshare.tree import PromptTree, fold_tree, truncate_sharing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Sequence as Items

    from torch import Tensor

    from treeshare.attention import PrefillChunk
    from treeshare.config import EngineConfig
    from treeshare.engine.sequence import Request
    from treeshare.models import LoadedModel

NOMINAL_COMPLETIONS = 32
"""Completions per prompt that folding assumes: the tree must not depend on how many are asked for."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of logits ``[vocab_size]`` and the sequences that draw their next token from it."""

    logits: Tensor
    sequences: list[Sequence]


class Engine:
    """Generates completions for a batch of requests as one tree.

    Args:
        loaded: A loaded model.
        config: See ``EngineConfig``.
        check_invariants: Check the KV store after every step (tests).
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, *, check_invariants: bool = False) -> None:
        self.loaded = loaded
        self.config = config
        self.stats = EngineStats()
        self.kv_budget_bytes = config.kv_budget_bytes or default_kv_budget_bytes()
        self.check_invariants = check_invariants
        self.adapter = ModelAdapter(
            loaded.model, max_step_tokens=config.max_step_tokens, max_logits_rows=config.max_num_seqs
        )
        self.backend = CpuAttention()
        self.sampler = Sampler()

    def run(self, requests: Items[Request]) -> Iterator[Completion]:
        """Generate; yields each completion as it finishes. Leaving the generator early frees everything.

        Args:
            requests: What to run; ``Completion.request_index`` refers to it.

        Raises:
            ConfigError: If a prompt is empty, too long, or has token ids the model does not know.
            BudgetError: If the KV budget does not hold the longest prompt with one completion.
        """
        return _Run(self, requests).steps()


class _Run:
    """The state of one call of ``Engine.run``."""

    def __init__(self, engine: Engine, requests: Items[Request]) -> None:
        loaded, config = engine.loaded, engine.config
        self.engine, self.config, self.requests = engine, config, requests
        self.max_new_tokens = [_max_new_tokens(loaded, i, request) for i, request in enumerate(requests)]
        found = PromptTree.from_prompts([request.prompt_token_ids for request in requests])
        self.tree = computed_tree(found, config.sharing)
        page_bytes = config.page_size * loaded.geometry.bytes_per_token
        most_pages = config.max_num_seqs * pages_needed(max(self.max_new_tokens, default=1), config.page_size)
        self.store = KVStore(
            loaded.geometry,
            budget_bytes=engine.kv_budget_bytes,
            page_size=config.page_size,
            max_pages=min(most_pages, engine.kv_budget_bytes // page_bytes),
            poison=engine.check_invariants,
        )
        self.scheduler = Scheduler(self.tree, requests, self.max_new_tokens, self.store, config)
        self.running: list[Sequence] = []
        self.admitted: list[Admission] = []
        self.prompt_logits: dict[int, Tensor] = {}
        self.stats = engine.stats = _initial_stats(found, requests)

    def steps(self) -> Iterator[Completion]:
        """The step loop."""
        started = time.perf_counter()
        try:
            while self.running or self.admitted or self.scheduler.num_waiting:
                self.admitted += self.scheduler.admit()
                chunks = self.scheduler.prefill_chunks(len(self.running))
                batch = self._forward(chunks) + self._start()
                finished = self._sample(batch)
                self.stats.peak_kv_bytes = self.store.peak_bytes
                self.stats.wall_s = time.perf_counter() - started
                if self.engine.check_invariants:
                    self.store.check_invariants()
                yield from finished
        finally:
            for sequence in self.running:
                self.store.free_pages(sequence.pages)
            self.scheduler.release_all()
            self.store.check_empty()

    def _forward(self, chunks: list[PrefillChunk]) -> list[_Row]:
        """Run the model on ``chunks`` and all running sequences; returns the latter with their logits."""
        if not chunks and not self.running:
            return []
        started = time.perf_counter()
        self.running.sort(key=lambda sequence: sequence.segment.order)
        for sequence in self.running:
            if sequence.num_private % self.config.page_size == 0:
                sequence.pages.append(self.store.new_page())
        rows = [DecodeRow(s.segment, s.pages, s.num_private) for s in self.running]
        layout = build_layout(self.store, chunks, rows, share_rows=self.config.sharing != "none")
        token_ids = np.zeros(layout.num_rows, dtype=np.int64)
        for chunk in layout.causal:
            tokens = self.tree.nodes[chunk.segment.order].token_ids
            token_ids[chunk.first_row : chunk.last_row] = tokens[chunk.start : chunk.end]
        token_ids[layout.decode_rows.numpy()] = [sequence.token_ids[-1] for sequence in self.running]
        ends = [
            chunk
            for chunk in layout.causal
            if chunk.end == chunk.segment.num_tokens and self.scheduler.awaits_logits(chunk.segment.order)
        ]
        step = NoAttention() if self.config.attention == "off" else TreeStep(self.engine.backend, layout)
        logits = self.engine.adapter.forward(
            token_ids, layout.positions, step, [*layout.decode_rows.tolist(), *(c.last_row - 1 for c in ends)]
        )
        for chunk, row in zip(ends, logits[len(rows) :], strict=True):
            self.prompt_logits[chunk.segment.order] = row.clone()
        self.stats.charge_forward(time.perf_counter() - started, layout.num_rows - len(rows), len(rows))
        return [_Row(row, [sequence]) for row, sequence in zip(logits, self.running, strict=False)]

    def _start(self) -> list[_Row]:
        """Begin the admitted completions whose prompt is prefilled, from the logits of its last token."""
        rows: list[_Row] = []
        blocked: list[Admission] = []
        for admission in self.admitted:
            node_id = admission.node_id
            if node_id not in self.prompt_logits:
                blocked.append(admission)
                continue
            lazy = self.config.lazy_divergence
            groups = [admission.completions] if lazy else [[index] for index in admission.completions]
            sequences = [self._new_sequence(admission, completions) for completions in groups]
            rows.append(_Row(self.prompt_logits[node_id], sequences))
            self.scheduler.start(node_id, len(admission.completions))
            if not self.scheduler.awaits_logits(node_id):
                del self.prompt_logits[node_id]
        self.admitted = blocked
        return rows

    def _new_sequence(self, admission: Admission, completions: list[int]) -> Sequence:
        request = self.requests[admission.request_index]
        loaded = self.engine.loaded
        stop = StopChecker(request.params, eos_token_ids=loaded.eos_token_ids, decode=self.engine.decode)
        segment = self.scheduler.segment(admission.node_id)
        return Sequence(admission.request_index, request, segment, completions, stop)

    def _sample(self, batch: list[_Row]) -> list[Completion]:
        """Draw the next token of every completion, split sequences that diverge, retire those that end."""
        if not batch:
            return []
        started = time.perf_counter()
        sequences = [sequence for row in batch for sequence in row.sequences]
        sampled = self.engine.sampler.sample(*self._draws(batch))
        first = 0
        finished: list[Completion] = []
        self.running = []
        for sequence in sequences:
            last = first + len(sequence.completions)
            for branch, draw in self._split(sequence, sampled.token_ids[first:last].tolist(), first):
                branch.append(sampled, draw)
                outcome = branch.outcome(self.max_new_tokens[branch.request_index])
                if outcome is None:
                    self.running.append(branch)
                else:
                    finished += self._retire(branch, outcome)
            first = last
        self.stats.sampling_s += time.perf_counter() - started
        self.stats.num_tokens += first
        return finished
