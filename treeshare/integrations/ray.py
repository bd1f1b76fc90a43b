"""A run on several processes of a Ray cluster: ``treeshare sample --ray``.

Every worker is an engine with the whole model. It gets all prompts of the run, and completion indices for its
part only: so it computes on the same tree as one process would, hence to the same tokens, and what it has
no completions for costs it nothing. The driver asks each worker for what has finished since it last asked,
and is the only one who writes.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeshare.devices import default_kv_budget_bytes
from treeshare.engine.engine import Engine
from treeshare.engine.plan import computed_tree, max_new_tokens
from treeshare.engine.stats import EngineStats, StepLog
from treeshare.engine.step_cost import step_cost_here
from treeshare.errors import RunMismatchError, TreeshareError, WorkerError, one_line
from treeshare.integrations.arguments import check_for_workers
from treeshare.models import ModelExtras, describe_model, load_model
from treeshare.runs.sampling_run import computation
from treeshare.tree import PromptTree
from treeshare.tree.shards import cut_forest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

    from treeshare.config import EngineConfig
    from treeshare.engine.llm import LLM
    from treeshare.engine.sequence import Completion, Request
    from treeshare.engine.step import StepResult
    from treeshare.integrations.ray_cluster import RayCluster
    from treeshare.tree.shards import Shard

MAX_FAILURES = 3
"""Workers that may end one after the other on the same part without a completion, or while starting."""

POLL_S = 1.0
"""Maximum seconds until a worker answers: for progress, and to learn what is cancelled."""


@dataclass(frozen=True, kw_only=True)
class WorkerFacts:
    """What a worker says of itself, to be compared with the driver.

    Attributes:
        model_sha256: Of its weights.
        computation: Kernels, threads and whatever else rounds.
    """

    model_sha256: str
    computation: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a worker has done since it was last asked.

    Attributes:
        finished: Completions.
        is_over: Whether its part is done.
        stats: Its counters for this part.
    """

    finished: list[Completion]
    is_over: bool
    stats: EngineStats


class Worker:
    """An engine in a process of its own; Ray makes the process and calls the methods.

    Args:
        model: As for ``LLM``.
        dtype: As for ``LLM``.
        quantization: As for ``LLM``.
        max_model_len: As for ``LLM``.
        extras: What is given beside the model.
        config: Of the engine.
        threads: Torch threads.
        workers_per_node: How many share the memory; without a budget in ``config`` each takes its part.
    """

    def __init__(
        self,
        model: str,
        dtype: str,
        quantization: str | None,
        max_model_len: int | None,
        extras: ModelExtras,
        config: EngineConfig,
        threads: int,
        workers_per_node: int,
    ) -> None:
        self._model, self._dtype, self._quantization, self._config = model, dtype, quantization, config
        self._max_model_len, self._extras = max_model_len, extras
        self._threads, self._workers_per_node = threads, workers_per_node
        self._results: Generator[StepResult, None, None] | None = None

    def load(self) -> WorkerFacts:
        """Load the model; before everything else, and not when the worker is made: Ray hides errors there."""
        import torch

        torch.set_num_threads(self._threads)
        config = self._config
        if config.kv_budget_bytes is None:
            config = replace(config, kv_budget_bytes=default_kv_budget_bytes() // self._workers_per_node)
        loaded = load_model(
            self._model,
            self._dtype,
            quantization=self._quantization,
            max_model_len=self._max_model_len,
            extras=self._extras,
        )
        self._engine = Engine(loaded, config)
        return WorkerFacts(
            model_sha256=self._engine.loaded.fingerprint(), computation=computation(self._engine)
        )

    def start(self, requests: Sequence[Request], wanted: Mapping[int, Sequence[int]]) -> Progress:
        """Begin a part: the completions ``wanted`` by request; then as ``advance``."""
        mine = [replace(request, completion_indices=wanted.get(i, ())) for i, request in enumerate(requests)]
        self._results = self._engine.run_steps(mine)
        return self.advance([])

    def advance(self, cancelled: Iterable[int]) -> Progress:
        """Step until a completion has finished, or for ``POLL_S`` seconds.

        Args:
            cancelled: Requests to cancel first.
        """
        assert self._results is not None, "a part was begun"
        for index in cancelled:
            self._engine.cancel(index)
        until = time.monotonic() + POLL_S
        finished: list[Completion] = []
        is_over = False
        while not finished and not is_over and time.monotonic() < until:
            result = next(self._results, None)
            is_over = result is None
            finished = result.finished if result else []
            if result is not None:
                result.raise_failed()
        stats = replace(self._engine.stats, steps=StepLog())  # the driver's report has no use for them
        return Progress(finished=finished, is_over=is_over, stats=stats)


@dataclass(eq=False, kw_only=True, slots=True)
class _Part:
    """A part of the run.

    Attributes:
        wanted: Completion indices still to come, by request.
        num_failures: Workers that ended on it, one after the other, without a completion.
    """

    wanted: dict[int, set[int]]
    num_failures: int = 0

    def take(self, completion: Completion) -> bool:
        """Whether a completion is wanted; from now on it is not."""
        left = self.wanted.get(completion.request_index, set())
        if completion.completion_index not in left:  # cancelled while it was on its way
            return False
        left.remove(completion.completion_index)
        self.num_failures = 0
        return True


@dataclass(eq=False, kw_only=True, slots=True)
class _WorkerHandle:
    """The driver's handle of a worker.

    Attributes:
        name: For messages.
        actor: Ray's handle of its process.
        part: What it works on; None while it starts or waits.
        stats: Its counters for that part.
        cancelled: Requests that were cancelled since it was last asked.
    """

    name: str
    actor: Any
    part: _Part | None = None
    stats: EngineStats = field(default_factory=EngineStats)
    cancelled: list[int] = field(default_factory=list)


class RayEngine:
    """Makes a run's completions with a cluster's workers; to ``sample_into`` it is an engine.

    A worker that dies is replaced, and its part continues with what had not arrived yet; nothing is lost or
    comes twice.

    Args:
        cluster: An entered cluster.
        llm: The driver's: says which model with which configuration, and generates nothing.
        model_sha256: What the workers' weights must be.

    Attributes:
        stats: All workers' counters: seconds are summed, peaks are the highest of any worker.
    """

    def __init__(self, cluster: RayCluster, llm: LLM, model_sha256: str) -> None:
        check_for_workers(llm)
        self._cluster, self._llm, self._model_sha256 = cluster, llm, model_sha256
        self._config = llm.config
        self._parts: deque[_Part] = deque()
        self._working: dict[Any, _WorkerHandle] = {}  # by the reference of what it was asked for last
        self._idle: list[_WorkerHandle] = []
        self._requests: Any = None
        self._num_started = self._num_failed_starts = 0
        self._past = self.stats = EngineStats()

    def run(self, requests: Sequence[Request]) -> Generator[Completion, None, None]:
        """Generate; yields each completion as it arrives. Leaving the generator early stops the workers.

        Args:
            requests: What to run.

        Raises:
            WorkerError: If workers end again and again on the same part, or while they start.
            RunMismatchError: If a worker has other weights than the driver.
            TreeshareError: What a worker raises, a ``BudgetError`` for instance.
        """
        import ray

        began = time.perf_counter()
        num_completions = sum(len(request.completion_indices) for request in requests)
        self._past = self.stats = EngineStats(num_completions=num_completions)
        shards = self._make_shards(requests)
        self._parts = deque(
            _Part(wanted={request: set(indices) for request, indices in shard.wanted.items()})
            for shard in shards
        )
        try:
            self._requests = ray.put([replace(request, completion_indices=()) for request in requests])
            for _ in range(min(self._cluster.num_workers, len(shards))):
                self._start_worker()
            while self._parts or any(worker.part for worker in self._working.values()):
                (ready, *_), _ = ray.wait(list(self._working), num_returns=1)
                finished = self._receive(self._working.pop(ready), ready)
                self.stats = self._sum(time.perf_counter() - began)
                yield from finished
        finally:
            for worker in (*self._working.values(), *self._idle):
                ray.kill(worker.actor)
            self._working, self._idle = {}, []

    def cancel(self, index: int) -> int:
        """Cancel a request; returns how many completions will not come."""
        count = 0
        for part in self._parts:
            count += len(part.wanted.pop(index, ()))
        for worker in self._working.values():
            if worker.part is not None and index in worker.part.wanted:
                count += len(worker.part.wanted.pop(index))
                worker.cancelled.append(index)
        self._past.num_cancelled += count
        return count

    def _sum(self, wall_s: float) -> EngineStats:
        total = replace(self._past, wall_s=wall_s)
        for worker in self._working.values():
            _add(total, worker.stats)
        return total

    def _make_shards(self, requests: Sequence[Request]) -> list[Shard]:
        llm, config = self._llm, self._config
        return cut_forest(
            computed_tree(
                PromptTree.from_prompts([request.prompt_token_ids for request in requests]), config
            ),
            [request.completion_indices for request in requests],
            [max_new_tokens(llm.loaded, i, request) for i, request in enumerate(requests)],
            step_cost_here(describe_model(llm.model_id, llm.dtype)),
            num_workers=self._cluster.num_workers,
            max_num_seqs=config.max_num_seqs,
        )

    def _start_worker(self) -> None:
        """Start a worker."""
        import ray

        model, threads = self._llm.model_id, self._cluster.threads
        actor_class: Any = ray.remote(Worker)
        actor = actor_class.options(num_cpus=threads, scheduling_strategy="SPREAD").remote(
            str(Path(model).absolute()) if os.path.exists(model) else model,
            self._llm.dtype,
            self._llm.loaded.quantization,
            self._llm.loaded.length_limit,
            self._llm.loaded.extras,
            self._config,
            threads,
            self._cluster.workers_per_node,
        )
        worker = _WorkerHandle(name=f"worker {self._num_started}", actor=actor)
        self._num_started += 1
        self._working[actor.load.remote()] = worker

    def _receive(self, worker: _WorkerHandle, ready: Any) -> list[Completion]:  # noqa: ANN401
        """Take a worker's answer and assign it what to do next."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            answer = ray.get(ready)
        except RayTaskError as error:  # the worker lives; what it was asked for failed
            if isinstance(error.cause, TreeshareError):
                raise error.cause from None
            raise
        except RayError as error:
            self._replace_worker(worker, error)
            return []
        if isinstance(answer, WorkerFacts):
            self._check(worker, answer)
            self._num_failed_starts = 0
            self._assign_part(worker)
            return []
        assert worker.part is not None, "progress is made on a part"
        finished = [completion for completion in answer.finished if worker.part.take(completion)]
        worker.stats = answer.stats
        if answer.is_over:
            _add(self._past, worker.stats)
            self._assign_part(worker)
        else:
            self._working[worker.actor.advance.remote(worker.cancelled)] = worker
            worker.cancelled = []
        return finished

    def _assign_part(self, worker: _WorkerHandle) -> None:
        """Let a worker begin the next part; without one it waits."""
        worker.part, worker.stats, worker.cancelled = None, EngineStats(), []
        while self._parts and worker.part is None:
            part = self._parts.popleft()
            part.wanted = {request: indices for request, indices in part.wanted.items() if indices}
            worker.part = part if part.wanted else None
        if worker.part is None:
            self._idle.append(worker)
            return
        wanted = {request: sorted(indices) for request, indices in worker.part.wanted.items()}
        self._working[worker.actor.start.remote(self._requests, wanted)] = worker

    def _replace_worker(self, worker: _WorkerHandle, error: Exception) -> None:
        """Replace a worker that has ended: another takes over what had not arrived of its part."""
        import ray

        ray.kill(worker.actor)  # it may only have been out of reach
        _add(self._past, worker.stats)
        reason = one_line(" ".join(str(error).split()), 160)
        if worker.part is None:
            self._num_failed_starts += 1
            num_failures = self._num_failed_starts
        else:
            worker.part.num_failures += 1
            num_failures = worker.part.num_failures
            self._parts.appendleft(worker.part)
        if num_failures >= MAX_FAILURES:
            raise WorkerError(
                f"--ray: {num_failures} workers ended in a row "
                f"{'while they started' if worker.part is None else 'on the same problems'}, the last one: "
                f"{reason}; finished completions are kept; remove the cause and resume"
            )
        print(f"{worker.name} has ended ({reason}); another worker continues its part", file=sys.stderr)
        if self._idle:
            self._assign_part(self._idle.pop())
        else:
            self._start_worker()

    def _check(self, worker: _WorkerHandle, facts: WorkerFacts) -> None:
        """Refuse other weights; tell what may round differently."""
        if facts.model_sha256 != self._model_sha256:
            raise RunMismatchError(
                f"--ray: {worker.name} has different weights for {one_line(self._llm.model_id)} from the "
                "driver; give all nodes the same model"
            )
        mine = computation(self._llm.engine)
        different = [
            f"{name} {one_line(facts.computation.get(name), 40)} instead of {one_line(mine[name], 40)}"
            for name in mine
            if facts.computation.get(name) != mine[name]
        ]
        if different:
            print(f"{worker.name} may round differently: {', '.join(different)}", file=sys.stderr)


def _add(total: EngineStats, part: EngineStats) -> None:
    """Add a part's counters to ``total``."""
    for name in (counter.name for counter in fields(EngineStats)):
        if name in ("unique_tokens", "peak_kv_bytes"):
            setattr(total, name, max(getattr(total, name), getattr(part, name)))
        elif name not in ("num_completions", "num_cancelled", "steps", "wall_s"):
            setattr(total, name, getattr(total, name) + getattr(part, name))
