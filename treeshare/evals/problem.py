"""Problems, tasks, and what checking a completion says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from treeshare.evals.sandbox import Limits, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from treeshare.evals.sandbox import Sandbox


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


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What checking a completion said.

    Attributes:
        verdict: How it ended.
        detail: One line on why it did not pass.
    """

    verdict: Verdict
    detail: str

    @property
    def passed(self) -> bool:
        """Whether the completion is right."""
        return self.verdict is Verdict.PASSED


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


class CodeTask(Task):
    """A task whose completions are Python programs that test themselves."""

    @abstractmethod
    def program(self, problem: Problem, completion: str) -> str:
        """Source that runs to its end if and only if the completion is right."""

    def check(self, problem: Problem, completion: str, sandbox: Sandbox, limits: Limits) -> CheckResult:
        """Run ``program`` in the sandbox."""
        execution = sandbox.run(self.program(problem, completion), limits=limits)
        return CheckResult(verdict=execution.verdict, detail=execution.detail)
