"""Problems, and tasks that say which completions of them are right."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from treeshare.evals.check_result import CheckResult
from treeshare.evals.program_tests import check_program, summed_up
from treeshare.evals.replies import Wanted, program_in
from treeshare.evals.votes import answer_classes

__all__ = ["CheckResult", "CodeTask", "Problem", "ProgramTask", "Task"]

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from treeshare.evals.program_tests import ProgramTests
    from treeshare.evals.sandbox import Limits, OutsideTests, Sandbox
    from treeshare.evals.task_card import TaskCard
    from treeshare.tree import Shot

CHAT_INSTRUCTION = "Answer with the complete Python code in one ```python block."


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One item of a task.

    Attributes:
        task_id: Unique in the task.
        prompt: The problem's own part of the prompt, without worked examples and chat template.
        data: What the task's checker needs in addition; read-only.
        chat_prompt: The prompt for chat models if there are no worked examples; ``prompt`` if empty.
    """

    task_id: str
    prompt: str
    data: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    chat_prompt: str = ""


class Task(ABC):
    """Where problems come from, and which completions are right.

    Attributes:
        name: As on the command line.
        stop: Strings that end a completion.
        max_tokens: Default maximum number of tokens of a completion.
        num_shots: Worked examples before each problem, as published.
        separator: Text between two worked examples and before the problem.
        chat_instruction: Instruction for chat models before the prompt; describes what ``from_chat`` looks
            for.
        chat_system: The system message of a chat; none if empty.
        chat_prefill: The given beginning of a chat model's reply; ``from_chat`` gets it too.
        chat_num_shots: ``num_shots`` for chat models; None if it is the same number.
        needs_sandbox: Whether ``check`` runs code; if not, its sandbox may be None.
        timeout_s: Default time limit of a program, in seconds.
        options: Names and meanings of the task's options; they are text and become keyword arguments of the
            class.
        card: What ``treeshare tasks`` says of it.
    """

    name: str
    stop: tuple[str, ...]
    max_tokens: int
    num_shots: int = 0
    separator: str = "\n\n"
    chat_instruction: str = ""
    chat_system: str = ""
    chat_prefill: str = ""
    chat_num_shots: int | None = None
    needs_sandbox: bool = True
    timeout_s: float = 3.0
    options: Mapping[str, str] = MappingProxyType({})
    card: TaskCard | None = None

    @abstractmethod
    def load(self, data: Path | None) -> list[Problem]:
        """Load the problems, in the data's order.

        Args:
            data: A local file in the hub's field names; the task's usual source by default.

        Raises:
            DataError: If the data is missing or malformed; one line that says where.
        """

    @abstractmethod
    def check(
        self, problem: Problem, completion: str, sandbox: Sandbox | None, limits: Limits
    ) -> CheckResult:
        """Check one completion. Safe to call from several threads.

        Raises:
            SandboxError: If the sandbox broke.
        """

    def shots(self, data: Path | None, shot_data: Path | None) -> Sequence[Shot]:
        """Worked examples to choose from, the published ones first; none by default.

        Args:
            data: As for ``load``.
            shot_data: A file to take them from instead, in the same field names.

        Raises:
            DataError: If they cannot be loaded.
        """
        return []

    def answer(self, problem: Problem, completion: str) -> str | None:
        """The answer of a completion, on which majority@n votes.

        Equal answers are equal strings, or in one class of ``answer_classes``. None, also by default: no
        answer, which casts no vote.
        """
        return None

    def answer_classes(self, problem: Problem, answers: Iterable[str]) -> list[list[str]]:
        """The distinct answers in classes of equivalent ones; by default, each in its own class.

        The classes may depend on nothing but which answers there are. See ``votes.answer_classes``.
        """
        return answer_classes(answers)

    def solution(self, problem: Problem, completion: str) -> str | None:
        """The program of a completion, without tests; None if it has none."""
        return None

    def from_chat(self, problem: Problem, reply: str) -> str:
        """The completion inside a chat model's reply; by default the whole of it."""
        return reply

    def fingerprint(self, problem: Problem, completion: str, limits: Limits) -> str | None:
        """All that the verdict depends on, as text; None if it is not worth caching."""
        return None


class CodeTask(Task):
    """A task whose completions become Python programs that are tested.

    Define ``tests``: they run in another process than the program. Without them the program tests itself and
    can fake its verdict, for instance by returning an object that equals everything.
    """

    chat_instruction = CHAT_INSTRUCTION

    @abstractmethod
    def program(self, problem: Problem, completion: str) -> str:
        """Source that is not run as ``__main__``: what ``tests`` test, without them.

        Where there are none, source that runs to its end if and only if the completion is right.
        """

    def tests(self, problem: Problem) -> OutsideTests | None:
        """The problem's tests, for another process than the program's; None if ``program`` tests itself."""
        return None

    def wanted_names(self, problem: Problem) -> frozenset[str]:
        """Functions and classes that the problem's tests use; none by default, where that is not known."""
        return frozenset()

    def from_chat(self, problem: Problem, reply: str) -> str:
        """See ``program_in``."""
        return program_in(reply, Wanted(names=self.wanted_names(problem)))

    def limits(self, problem: Problem, limits: Limits) -> Limits:
        """The limits of a program with its tests; override it where problems have their own."""
        return limits

    def check(
        self, problem: Problem, completion: str, sandbox: Sandbox | None, limits: Limits
    ) -> CheckResult:
        """Run ``program`` in the sandbox, and its tests in another one."""
        assert sandbox is not None
        program, tests = self.program(problem, completion), self.tests(problem)
        limits = self.limits(problem, limits)
        if tests is None:
            execution = sandbox.run(program, limits=limits, as_main=False)
        else:
            execution = sandbox.examine(program, tests, limits=limits)
        return CheckResult(verdict=execution.verdict, detail=execution.detail)

    def fingerprint(self, problem: Problem, completion: str, limits: Limits) -> str | None:
        """See ``Task.fingerprint``."""
        tests, limits = self.tests(problem), self.limits(problem, limits)
        parts = [self.program(problem, completion), None if tests is None else asdict(tests), asdict(limits)]
        return json.dumps(parts)

    def solution(self, problem: Problem, completion: str) -> str | None:
        """See ``Task.solution``; a completion continues where the prompt ends."""
        return problem.prompt + completion


class ProgramTask(Task):
    """A task whose completions become programs, or modules with a function, to run a problem's tests on."""

    chat_instruction = CHAT_INSTRUCTION

    @abstractmethod
    def program(self, problem: Problem, completion: str) -> str:
        """Source that reads stdin and prints, or that defines what the tests call."""

    @abstractmethod
    def tests(self, problem: Problem) -> ProgramTests:
        """The problem's tests."""

    def entry_point(self, problem: Problem) -> str:
        """What the problem's tests call: ``"f"``, or ``"Solution.f"``; empty if they give standard input."""
        return self.tests(problem).entry_point

    def from_chat(self, problem: Problem, reply: str) -> str:
        """See ``program_in``."""
        name = self.entry_point(problem).rpartition(".")[2]
        return program_in(reply, Wanted(names=frozenset({name} - {""}), reads_stdin=not name))

    def limits(self, problem: Problem, limits: Limits) -> Limits:
        """The limits of one test; override it where problems have their own."""
        return limits

    def check(
        self, problem: Problem, completion: str, sandbox: Sandbox | None, limits: Limits
    ) -> CheckResult:
        """Run ``program`` on the tests, up to the first one that it fails."""
        assert sandbox is not None
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
