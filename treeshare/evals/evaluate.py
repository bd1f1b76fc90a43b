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
from treeshare.evals.votes import representatives

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from treeshare.evals.problem import CheckResult, Problem, Task
    from treeshare.evals.sandbox import Limits, Sandbox
    from treeshare.evals.verdict_cache import VerdictCache


@dataclass(frozen=True, kw_only=True)
class CheckedCompletion:
    """A completion, what its check said, and what it votes for, if the task has votes.

    Attributes:
        task_id: Its problem.
        completion_index: Which of the problem's completions.
        result: What its check said.
        answer: What it votes for: of equivalent answers the one that stands for all.
        answer_passed: Whether that one is right, where it is another than the completion's own; else None.
    """

    task_id: str
    completion_index: int
    result: CheckResult
    answer: str | None = None
    answer_passed: bool | None = None


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
                "answer_passed": completion.answer_passed,
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
    users = _users(by_id, records)

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
    by_problem: dict[str, list[Mapping[str, Any]]] = {task_id: [] for task_id in by_id}
    for record in sorted(records, key=lambda record: record["completion_index"]):
        by_problem[record["task_id"]].append(record)
    checked = []
    for task_id, own in by_problem.items():
        problem = by_id[task_id]
        checked += _with_votes(task, problem, own, [results[task_id, record["completion"]] for record in own])
    return Evaluation(completions=checked)


def _users(by_id: Mapping[str, Problem], records: Sequence[Mapping[str, Any]]) -> Counter[tuple[str, str]]:
    """How often each completion of each problem is there."""
    users = Counter[tuple[str, str]]()
    for record in records:
        if record["task_id"] not in by_id:
            raise DataError(f"{record['task_id']}: the task has no such problem; give the run's own --data")
        users[record["task_id"], record["completion"]] += 1
    return users


def _with_votes(
    task: Task, problem: Problem, records: Sequence[Mapping[str, Any]], results: Sequence[CheckResult]
) -> list[CheckedCompletion]:
    """A problem's checked completions, with what they vote for."""
    answers = [task.answer(problem, record["completion"]) for record in records]
    given = {answer for answer in answers if answer is not None}
    chosen = representatives(answers, task.answer_classes(problem, given))
    passed = {answer: result.passed for answer, result in zip(answers, results, strict=True)}
    return [
        CheckedCompletion(
            task_id=problem.task_id,
            completion_index=record["completion_index"],
            result=result,
            answer=answer,
            answer_passed=passed[answer] if passed[answer] != result.passed else None,
        )
        for record, result, answer in zip(records, results, chosen, strict=True)
    ]


@contextlib.contextmanager
def _saying_what_is_kept() -> Iterator[None]:
    """Where the sandbox breaks, say that the cache has the verdicts so far."""
    try:
        yield
    except SandboxError as error:
        kept = "verdicts so far are kept: evaluate again to go on from them"
        raise SandboxError(f"{error}; {kept}") from error
