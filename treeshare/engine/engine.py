"""The step loop: schedule, run, sample, finish."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treeshare.engine.intake import Intake
from treeshare.engine.packing import PackedStep, RowBatch, starting_batch
from treeshare.engine.residency import Residency
from treeshare.engine.runner import ModelRunner
from treeshare.engine.scheduler import Scheduler
from treeshare.engine.stats import EngineStats
from treeshare.engine.token_step import BOOKKEEPING, TokenStep
from treeshare.errors import ConfigError
from treeshare.models.weights import change_weights
from treeshare.stopwatch import REST

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from collections.abc import Sequence as Items

    from torch import Tensor

    from treeshare.config import EngineConfig
    from treeshare.engine.scheduler import StepPlan
    from treeshare.engine.sequence import Completion, Request, Sequence
    from treeshare.engine.token_step import Observer
    from treeshare.kv import KVStore
    from treeshare.models import LoadedModel
    from treeshare.stopwatch import Stopwatch


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step produced.

    Attributes:
        finished: Completions that ended.
        drawn: Sequences that drew a token and go on.
    """

    finished: list[Completion]
    drawn: list[Sequence]


class Engine:
    """Generates completions for requests, which may come at any time, as one tree.

    Not to be used from two threads at once. Whatever ends a step early, an interrupt included, drops all
    requests and their KV; then the engine can be used again.

    Args:
        loaded: A loaded model.
        config: See ``EngineConfig``.
        runner: Runs the model; by default one is made.
        check_invariants: Poison unused KV, and check all invariants after every step (tests).

    Attributes:
        loaded, config, check_invariants: As given.
        runner: Runs the model; holds all KV.
        stats: The engine's measurements since ``run`` was last called.
        weights_version: How often the weights were changed.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: EngineConfig,
        runner: ModelRunner | None = None,
        *,
        check_invariants: bool = False,
    ) -> None:
        self.loaded = loaded
        self.config = config
        self.check_invariants = check_invariants
        self.runner = runner or ModelRunner(loaded, config, poison=check_invariants)
        self.stats = EngineStats()
        self.weights_version = 0
        self.clear()

    def clear(self) -> None:
        """Drop all requests and their KV, whatever state an interrupt left behind."""
        self.runner.reset()
        self._residency = Residency(
            self.store, prefill_chunk=self.config.prefill_chunk, keep_nodes=self.config.keep_nodes
        )
        self._scheduler = Scheduler(
            self._residency,
            self.config,
            max_rows=self.runner.max_rows,
            max_logits_rows=self.runner.max_logits_rows,
        )
        self._token_step = TokenStep(self.runner)
        self._token_step.version = self.weights_version
        self._intake = Intake(self.loaded, self.config, self._residency, self._scheduler, self._token_step)

    @property
    def store(self) -> KVStore:
        """All KV."""
        return self.runner.store

    @property
    def backend_name(self) -> str:
        """Which backend computes attention."""
        return self.runner.backend.name

    @property
    def stopwatch(self) -> Stopwatch:
        """Where the time went since it was restarted; off unless ``config.profile``."""
        return self.runner.stopwatch

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._scheduler.is_idle and self._intake.is_empty

    # -- requests --

    def add_request(self, request: Request) -> int:
        """Take a request; it joins the tree at the next step, with all others that came since the last step.

        Returns:
            Its index, by which its completions refer to it.

        Raises:
            ConfigError: As ``check``.
            BudgetError: As ``check``.
        """
        self._add([request])
        return self._intake.num_requests - 1

    def check(self, requests: Items[Request]) -> list[tuple[Request, int]]:
        """Refuse requests that could never run; returns each with the maximum tokens of a completion.

        Raises:
            ConfigError: If a prompt is empty, too long, or has token ids the model does not know.
            BudgetError: If the KV budget does not hold the longest prompt with one completion.
        """
        return self._intake.check(requests)

    def longest_completion(self, num_prompt_tokens: int) -> int:
        """Maximum tokens of a completion of such a prompt within the model's length and the KV budget."""
        return self._intake.longest_completion(num_prompt_tokens)

    def cancel(self, index: int, completion_indices: Items[int] = ()) -> int:
        """Cancel a request, or only some of its completions; not to be called inside a step.

        Returns:
            How many completions will not come: 0 if all are finished or the request is not known.
        """
        count = self._intake.cancel(index, completion_indices)
        self.stats.num_cancelled += count
        return count

    def update_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Change weights between steps; running completions keep their tokens and go on with the new weights.

        KV that depends on them is dropped, and computed again where it is needed. Not to be called inside a
        step. Arguments and errors are those of ``models.weights.change_weights``.
        """
        is_outdated = change_weights(self.loaded.model, weights)
        self._scheduler.drop_logits()
        if is_outdated:
            self._scheduler.drop_kv()
        self.weights_version += 1
        self._token_step.version = self.weights_version

    def run(
        self,
        requests: Items[Request],
        *,
        observe: Observer | None = None,
    ) -> Generator[Completion, None, None]:
        """Generate; yields each completion as it finishes. Leaving the generator early frees everything.

        Args:
            requests: What to run; ``Completion.request_index`` refers to it.
            observe: Called for every token drawn, with the sequence and its logits ``[vocab_size]``.

        Raises:
            ConfigError: As ``check``; or if other requests are running.
            BudgetError: As ``check``.
        """
        for result in self.run_steps(requests, observe=observe):
            yield from result.finished

    def run_steps(
        self,
        requests: Items[Request],
        *,
        observe: Observer | None = None,
    ) -> Generator[StepResult, None, None]:
        """As ``run``, but yields the result of each step."""
        if not self.is_idle:
            raise ConfigError("engine: other requests are running; finish, cancel or clear them first")
        started = time.perf_counter()
        self.stopwatch.lap(REST)
        self.stats = EngineStats()
        self.store.restart_peak()
        self._intake.num_requests = 0
        self._token_step.observe, self._scheduler.pace.is_live = observe, False
        try:
            self._add(requests)
            self._intake.join_tree(self.stats)
            self.stopwatch.lap("planning")
            while not self.is_idle:
                result = self.step()
                self.stats.wall_s = time.perf_counter() - started
                yield result
                self.stopwatch.lap(BOOKKEEPING)
            if not self.config.keep_nodes:
                self.store.check_empty()
        finally:  # also where the caller left after the last completion
            self._token_step.observe, self._scheduler.pace.is_live = None, True
            if not self.is_idle:
                self.clear()

    # -- the step --

    def step(self) -> StepResult:
        """Compute a step: chunks of prompts, a token of each running sequence, or both."""
        started = time.perf_counter()
        try:
            self._intake.join_tree(self.stats)
            plan = self._scheduler.schedule()
            result = self._sample([*self._run(plan), *self._start(plan)])
            self._finish(result)
        except BaseException:  # an interrupt may come anywhere, also between a page's owners
            self.clear()
            raise
        self.stats.step_s.append(time.perf_counter() - started)
        return result

    def _run(self, plan: StepPlan) -> list[RowBatch]:
        """Compute a step's rows and chunks; keep the logits from which completions will start.

        Returns:
            The rows that draw their next token now, with their logits.
        """
        if not plan.rows and not plan.chunks:
            self.stats.note_step(plan, 0)
            return []
        started = time.perf_counter()
        self.stopwatch.enter("decode" if plan.rows else "prefill", before="scheduling")
        packed = PackedStep.of(plan, self.store, self.config.sharing)
        logits = self.runner.forward(packed.layout, packed.tokens, packed.logits_rows)
        num_drawing = len(packed.drawing)
        for node, row in zip(packed.ending, logits[num_drawing:], strict=True):
            self._residency.keep_logits(node, row.clone())
        for sequence in plan.rows:
            sequence.num_computed += 1
        self.stopwatch.enter("between", before=BOOKKEEPING)
        self.stats.note_model_call(plan, time.perf_counter() - started)
        self.stats.note_step(plan, num_drawing)
        return [RowBatch(logits[:num_drawing], [[s] for s in packed.drawing])] if num_drawing else []

    def _start(self, plan: StepPlan) -> list[RowBatch]:
        """The completions that draw their first token, with the logits of their prompt's last one."""
        starting = self._scheduler.take_starting() if plan.starts else []
        if not starting:
            return []
        counts = [(sequence.live.node, len(sequence.completions)) for sequence in starting]
        batch = starting_batch(starting, is_lazy=self.config.lazy_divergence)
        for node, count in counts:
            self._residency.note_started(node, count)
        return [batch]

    def _sample(self, batches: list[RowBatch]) -> StepResult:
        """Draw the next tokens; sequences that go on stay with the scheduler."""
        started = time.perf_counter()
        drawing = {sequence for batch in batches for group in batch.sequences for sequence in group}
        result = StepResult([], [])
        for batch in batches:
            going_on, ended = self._token_step.run(batch)
            result.drawn.extend(going_on)
            result.finished.extend(ended)
        self._scheduler.go_on(drawing, result.drawn)
        self.stats.num_tokens += len(result.finished) + sum(len(s.completions) for s in result.drawn)
        self.stats.num_finished += len(result.finished)
        self.stats.sampling_s += time.perf_counter() - started
        return result

    def _finish(self, result: StepResult) -> None:
        """Release what finished completions held."""
        self.stats.peak_kv_bytes = self.store.peak_bytes
        for completion in result.finished:
            self._intake.finish(completion)
        if self.check_invariants:
            self.store.check_invariants()
            self._scheduler.check_invariants()

    def _add(self, requests: Items[Request]) -> None:
        self._intake.add(requests)
        self.stats.num_completions += sum(len(request.completion_indices) for request in requests)
