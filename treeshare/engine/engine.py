"""The step loop: schedule, run, sample, finish."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING

from treeshare.engine.constraints import Constraints
from treeshare.engine.hooks import ProcessorBatch
from treeshare.engine.intake import Intake
from treeshare.engine.logs import log_run
from treeshare.engine.residency import Residency
from treeshare.engine.runner import MAX_LOGITS_BYTES, ModelRunner
from treeshare.engine.scheduler import Scheduler
from treeshare.engine.stats import EngineStats
from treeshare.engine.step import StepComputer, StepResult
from treeshare.engine.thinking import Reasoning
from treeshare.engine.token_step import BOOKKEEPING, TokenStep
from treeshare.errors import ConfigError
from treeshare.models.weights import change_weights
from treeshare.stopwatch import REST

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from collections.abc import Sequence as Items

    from torch import Tensor

    from treeshare.config import EngineConfig
    from treeshare.engine.sequence import Completion, Request
    from treeshare.engine.token_step import Observer
    from treeshare.kv import KVStore
    from treeshare.models import LoadedModel
    from treeshare.stopwatch import Stopwatch


TRIMMED_BYTES = 16 << 20
"""Freed bytes from which on a run gives them back to the system when it ends, which takes milliseconds."""


class Engine:
    """Generates completions for requests, which may come at any time, as one tree.

    Not to be used from two threads at once. What fails for one request (its logits, its stop conditions) ends
    that request alone, see ``StepResult``. Whatever else ends a step early, an interrupt included, drops all
    requests and their KV; then the engine can be used again.

    Args:
        loaded: A loaded model.
        config: See ``EngineConfig``.
        runner: Runs the model; by default one is made.
        logits_processors: See ``LLM``.
        check_invariants: Poison unused KV, and check all invariants after every step (tests).

    Attributes:
        loaded, config, check_invariants: As given.
        runner: Runs the model; holds all KV.
        reasoning: How the model marks its reasoning.
        stats: The engine's measurements since ``run`` was last called.
        weights_version: How often the weights were changed.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: EngineConfig,
        runner: ModelRunner | None = None,
        *,
        logits_processors: Items[type | str] = (),
        check_invariants: bool = False,
    ) -> None:
        self.loaded = loaded
        self.config = config
        self.check_invariants = check_invariants
        self.processors = ProcessorBatch(logits_processors, config)
        self._constraints = Constraints(loaded, self.processors)
        self.reasoning = Reasoning(loaded, config.reasoning_parser)
        self.runner = runner or ModelRunner(loaded, config, poison=check_invariants)
        self.stats = EngineStats()
        self.weights_version = 0
        self._search: weakref.ref[object] | None = None
        self.clear()

    def clear(self) -> None:
        """Drop all requests and their KV, whatever state an interrupt left behind; end a search."""
        self._search = None
        self.runner.reset()
        self._residency = Residency(
            self.store, prefill_chunk=self.config.prefill_chunk, keep_nodes=self.config.keep_nodes
        )
        self._scheduler = Scheduler(
            self._residency,
            self.config,
            max_rows=self.runner.max_rows,
            max_logits_rows=self.runner.max_logits_rows,
            max_scored_rows=MAX_LOGITS_BYTES // (4 * self.loaded.vocab_size),
        )
        self._token_step = TokenStep(self.runner, self._constraints, self.processors, self.reasoning)
        self._token_step.version = self.weights_version
        self._computer = StepComputer(
            self.runner, self.config, self._residency, self._scheduler, self._token_step
        )
        self._intake = Intake(
            self.loaded,
            self.config,
            self._residency,
            self._scheduler,
            self._token_step,
            self._constraints,
            self.reasoning,
        )

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

    # -- who may use it --

    def lend(self, search: object) -> None:
        """Nothing else may run until ``clear``, or until nobody holds ``search`` any more."""
        self._search = weakref.ref(search)

    def require_idle(self, who: str) -> None:
        """Raise ``ConfigError`` in the name of ``who`` if requests are running or a search is open."""
        if not self.is_idle:
            raise ConfigError(f"{who}: other requests are running; finish, cancel or clear them first")
        self._require_no_search(who)

    def _require_no_search(self, who: str) -> None:
        if self._search is None:
            return
        if self._search() is not None:
            raise ConfigError(f"{who}: a search is open, whose KV would be outdated; close it first")
        self.clear()  # what a search that nobody holds any more has left

    # -- requests --

    def add_request(self, request: Request) -> int:
        """As ``add_requests`` for a single one; returns its index."""
        return self.add_requests([request]).start

    def add_requests(self, requests: Items[Request]) -> range:
        """Take requests; they join the tree at the next step, with all others that came since the last step.

        Returns:
            Their indices, by which completions refer to them.

        Raises as ``check``, also a ``ConfigError`` if a search is open; none was taken.
        """
        self._require_no_search("engine")
        first = self._intake.num_requests
        self._intake.add(requests)
        self.stats.num_completions += sum(len(request.completion_indices) for request in requests)
        return range(first, self._intake.num_requests)

    def check(self, requests: Items[Request]) -> list[tuple[Request, int]]:
        """Refuse requests that could never run; returns each with the maximum tokens of a completion.

        Raises:
            ConfigError: If a prompt is empty, too long, has unknown token ids, or as ``Constraints.check``.
            BudgetError: If the KV budget does not hold the longest prompt with one completion.
        """
        return self._intake.check(requests)

    def longest_completion(self, num_prompt_tokens: int) -> int:
        """Maximum tokens of a completion of such a prompt within the model's length and the KV budget."""
        return self._intake.longest_completion(num_prompt_tokens)

    def cancel(self, index: int, completion_indices: Items[int] | None = None) -> int:
        """Cancel a request, or only some of its completions; not to be called inside a step.

        Args:
            index: Of the request.
            completion_indices: Which completions; all without a list, none by an empty one.

        Returns:
            How many completions will not come: 0 if all are finished or the request is not known.
        """
        count = self._intake.cancel(index, completion_indices)
        self.stats.num_cancelled += count
        return count

    def update_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Change weights between steps; running completions keep their tokens and use the new weights.

        KV that depends on them is dropped, and computed again where it is needed. Not to be called inside a
        step. Arguments and errors are those of ``models.weights.change_weights``; it is a ``ConfigError``,
        too, while a search is open.
        """
        self._require_no_search("update_weights")
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

        Raises as ``check``, also a ``ConfigError`` if other requests are running or a search is open; and
        what ended a request, once the completions that finished with it are out.
        """
        for result in self.run_steps(requests, observe=observe):
            yield from result.finished
            result.raise_failed()

    def run_steps(
        self,
        requests: Items[Request],
        *,
        observe: Observer | None = None,
    ) -> Generator[StepResult, None, None]:
        """As ``run``, but yields each step's result; requests that failed do not end the others."""
        self.require_idle("engine")
        started = time.perf_counter()
        self.stopwatch.lap(REST)
        self.stats = EngineStats()
        self.store.restart_peak()
        self._intake.num_requests = 0
        self._token_step.observe, self._scheduler.pace.is_live = observe, False
        try:
            self.add_requests(requests)
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
            log_run(self.stats)
            if not self.is_idle:
                self.clear()
            elif self.store.loose_bytes >= TRIMMED_BYTES:
                self.store.trim()

    def step(self) -> StepResult:
        """Compute a step: chunks of prompts, a token of each running sequence, or both."""
        started = time.perf_counter()
        try:
            self._intake.join_tree(self.stats)
            plan = self._scheduler.schedule()
            result, failed = self._computer.compute(plan, self.stats)
            for live in failed:
                self.stats.num_cancelled += self._intake.cancel(live.index, None)
            self._finish(result)
        except BaseException:  # an interrupt may come anywhere, also between a page's owners
            self.clear()
            raise
        self.stats.steps.note(time.perf_counter() - started, len(plan.rows), plan.num_prompt_tokens)
        return result

    def _finish(self, result: StepResult) -> None:
        """Release what finished completions held."""
        self.stats.peak_kv_bytes = self.store.peak_bytes
        for completion in result.finished:
            self._intake.finish(completion)
        if self.check_invariants:
            self.store.check_invariants()
            self._scheduler.check_invariants()
