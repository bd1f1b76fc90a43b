"""A planned step: run the model, draw tokens, and report what ended, what continues and what failed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from treeshare.engine.packing import PackedStep, RowBatch, starting_batch
from treeshare.engine.prompt_scores import note as note_scores
from treeshare.engine.sequence import Sequence
from treeshare.engine.token_step import BOOKKEEPING

if TYPE_CHECKING:
    from treeshare.config import EngineConfig
    from treeshare.engine.residency import Residency
    from treeshare.engine.runner import ModelRunner
    from treeshare.engine.scheduler import Scheduler, StepPlan
    from treeshare.engine.sequence import Completion, LiveRequest
    from treeshare.engine.stats import EngineStats
    from treeshare.engine.token_step import TokenStep


@dataclass(slots=True)
class StepResult:
    """What a step produced.

    Attributes:
        finished: Completions that ended.
        drawn: Sequences that drew a token and continue.
        failed: The error of each request that failed, by its index: its other completions are cancelled.
    """

    finished: list[Completion] = field(default_factory=list)
    drawn: list[Sequence] = field(default_factory=list)
    failed: dict[int, Exception] = field(default_factory=dict)

    def raise_failed(self) -> None:
        """Raise the error of the first request that failed, if any has."""
        for error in self.failed.values():
            raise error


class StepComputer:
    """Computes what the scheduler has planned.

    Args:
        runner: Runs the model.
        config: How rows share KV.
        residency: Keeps the logits from which completions start.
        scheduler: Gets the sequences that continue.
        token_step: Draws tokens.
    """

    def __init__(
        self,
        runner: ModelRunner,
        config: EngineConfig,
        residency: Residency,
        scheduler: Scheduler,
        token_step: TokenStep,
    ) -> None:
        self._runner, self._config = runner, config
        self._residency, self._scheduler, self._token_step = residency, scheduler, token_step

    def compute(self, plan: StepPlan, stats: EngineStats) -> tuple[StepResult, list[LiveRequest]]:
        """Run the model on a plan and draw; ``stats`` counts.

        Returns:
            The result, and the requests that failed: what was drawn for them has lost its rows, their other
            completions are still queued.
        """
        return self._sample([*self._run(plan, stats), *self._start(plan)], stats)

    def _run(self, plan: StepPlan, stats: EngineStats) -> list[RowBatch]:
        """Compute a step's rows and chunks; keep the logits from which completions will start.

        Returns:
            The rows that draw their next token now, with their logits.
        """
        stopwatch = self._runner.stopwatch
        if not plan.rows and not plan.chunks:
            stats.note_step(plan, 0)
            return []
        started = time.perf_counter()
        stopwatch.enter("decode" if plan.rows else "prefill", before="scheduling")
        packed = PackedStep.of(plan, self._runner.store, self._config.sharing)
        logits = self._runner.forward(packed.layout, packed.tokens, packed.logits_rows)
        num_drawing = len(packed.drawing)
        num_kept = num_drawing + len(packed.ending)
        for node, row in zip(packed.ending, logits[num_drawing:num_kept], strict=True):
            self._residency.keep_logits(node, row.clone())
        note_scores(logits[num_kept:], packed.scored)
        for sequence in plan.rows:
            sequence.num_computed += 1
        stopwatch.enter("between", before=BOOKKEEPING)
        stats.note_model_call(plan, time.perf_counter() - started)
        stats.note_step(plan, num_drawing)
        return [RowBatch(logits[:num_drawing], [[s] for s in packed.drawing])] if num_drawing else []

    def _start(self, plan: StepPlan) -> list[RowBatch]:
        """The completions that draw their first token, with the logits of their prompt's last one."""
        starting = self._scheduler.take_starting() if plan.starts else []
        if not starting:
            return []
        counts = [(sequence.live.node, len(sequence.completions)) for sequence in starting]
        batch = starting_batch(starting, is_lazy=self._config.lazy_divergence)
        for node, count in counts:
            self._residency.note_started(node, count)
        return [batch]

    def _sample(self, batches: list[RowBatch], stats: EngineStats) -> tuple[StepResult, list[LiveRequest]]:
        """Draw the next tokens; sequences that continue stay with the scheduler."""
        started = time.perf_counter()
        drawing = {sequence for batch in batches for group in batch.sequences for sequence in group}
        result, failed = StepResult(), dict[Sequence, Exception]()
        for batch in batches:
            tokens = self._token_step.run(batch)
            result.drawn.extend(tokens.going_on)
            result.finished.extend(tokens.ended)
            failed |= tokens.failed
        self._scheduler.go_on(drawing, result.drawn)
        stats.num_tokens += len(result.finished) + sum(len(s.completions) for s in result.drawn)
        stats.num_finished += len(result.finished)
        stats.num_masks += self._token_step.take_num_masks()
        for sequence, error in failed.items():
            self._drop(sequence)
            result.failed.setdefault(sequence.request_index, error)
        if failed:
            result.drawn = [s for s in result.drawn if s.request_index not in result.failed]
        stats.sampling_s += time.perf_counter() - started
        return result, list({sequence.live: None for sequence in failed})

    def _drop(self, sequence: Sequence) -> None:
        """End a sequence that drew, and so is in no queue any more: its request has failed."""
        sequence.drop_kv(self._runner.store)
        count = len(sequence.completions)
        sequence.live.num_unfinished -= count
        self._residency.forget(sequence.live.node, count, had_row=True)
