"""Checks a run's completions in parallel."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treeshare.errors import DataError
from treeshare.evals.sandbox.base import SandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from treeshare.evals.problem import CheckResult, Problem, Task
    from treeshare.evals.sandbox import Limits, Sandbox
    from treeshare.evals.verdict_cache import VerdictCache


@dataclass(frozen=True, kw_only=True)
class CheckedCompletion:
    """A completion, what its check said, and what it votes for, if the task has votes."""

    task_id: str
    completion_index: int
    result: CheckResult
    answer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All of a run's completions, checked, in the problems' order."""

    completions: list[CheckedCompletion]

    def counts(self) -> dict[str, tuple[int, int]]:
        """Per problem, completions and right ones."""
        totals, correct = Counter[str](), Counter[str]()
        for completion in self.completions:
            totals[completion.task_id] += 1
            correct[completion.task_id] += completion.result.passed
        return {task_id: (total, correct[task_id]) for task_id, total in totals.items()}

    def results_jsonl(self) -> bytes:
        """One JSON line per completion with its verdict, and with what else is known of it."""
        lines = []
        for completion in self.completions:
            line = {
                "task_id": completion.task_id,
                "completion_index": completion.completion_index,
                "passed": completion.result.passed,
                "verdict": str(completion.result.verdict),
                "detail": completion.result.detail,
            }
            optional = {
                "answer": completion.answer,
                "passed_public": completion.result.passed_public,
                "signature": completion.result.signature,
            }
            line |= {name: value for name, value in optional.items() if value is not None}
            lines.append(json.dumps(line) + "\n")
        return "".join(lines).encode()


def evaluate_completions(
    task: Task,
    problems: Sequence[Problem],
    records: Sequence[Mapping[str, Any]],
    sandbox: Sandbox | None,
    *,
    workers: int,
    limits: Limits,
    cache: VerdictCache | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Check every completion of a run; the same completion of a problem is checked once.

    Args:
        task: Says what is right.
        problems: All that ``records`` refer to.
        records: Mappings with ``task_id``, ``completion_index`` and ``completion``.
        sandbox: Where code runs; closed if this is interrupted. May be None if the task needs none.
        workers: Programs run at once.
        limits: Of each program.
        cache: Verdicts already known; gains each new one as soon as it is there.
        on_progress: Called once for each record.

    Raises:
        DataError: If a record names an unknown problem.
        SandboxError: If the sandbox broke; the message says so where a cache keeps the verdicts so far.
    """
    by_id = {problem.task_id: problem for problem in problems}
    rank = {task_id: place for place, task_id in enumerate(by_id)}
    users = Counter[tuple[str, str]]()
    for record in records:
        if record["task_id"] not in by_id:
            raise DataError(f"{record['task_id']}: the task has no such problem; give the run's own --data")
        users[record["task_id"], record["completion"]] += 1

    def check(key: tuple[str, str]) -> CheckResult:
        problem, completion = by_id[key[0]], key[1]
        text = None if cache is None else task.fingerprint(problem, completion, limits)
        if cache is None or text is None:
            return task.check(problem, completion, sandbox, limits)
        name = cache.key(f"{task.name}\n{sandbox.name if sandbox else ''}\n{text}")
        with _saying_what_is_kept():
            result = cache.get(name) or task.check(problem, completion, sandbox, limits)
        cache.add(name, result)
        return result

    pool = ThreadPoolExecutor(workers)
    try:
        pending = {pool.submit(check, key): key for key in users}
        results = {}
        for future in as_completed(pending):
            key = pending[future]
            results[key] = future.result()
            for _ in range(users[key]):
                on_progress()
    except BaseException:
        if sandbox is not None:
            sandbox.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        if sandbox is not None:
            sandbox.release()
    checked = [
        CheckedCompletion(
            task_id=record["task_id"],
            completion_index=record["completion_index"],
            result=results[record["task_id"], record["completion"]],
            answer=task.answer(by_id[record["task_id"]], record["completion"]),
        )
        for record in records
    ]
    checked.sort(key=lambda completion: (rank[completion.task_id], completion.completion_index))
    return Evaluation(completions=checked)


@contextlib.contextmanager
def _saying_what_is_kept() -> Iterator[None]:
    """Where the sandbox breaks, say that the cache has the verdicts so far."""
    try:
        yield
    except SandboxError as error:
        kept = "verdicts so far are kept: evaluate again to go on from them"
        raise SandboxError(f"{error}; {kept}") from error
