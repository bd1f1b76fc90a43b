"""APPS: contest and interview problems in three difficulties; ``apps.md`` has the details.

Source: Hendrycks et al., "Measuring coding challenge competence with APPS", arXiv 2105.09938.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import AliasChoices, BaseModel, Field

from treeshare.errors import DataError
from treeshare.evals.matching import AnyOfMatcher, ValueMatcher
from treeshare.evals.numerals import digits_of, loads
from treeshare.evals.problem import Problem, ProgramTask
from treeshare.evals.program_tests import CallCase, ProgramTests, StdinCase
from treeshare.evals.task_card import TaskCard
from treeshare.evals.values import NoValueError, encode
from treeshare.tasks.preludes import GRADER, STARTER
from treeshare.tasks.reading import distinct, read_hub, read_records
from treeshare.tasks.statements import matcher_for
from treeshare.tree import Shot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HUB_ID = "codeparrot/apps"


class AppsRecord(BaseModel):
    """One record of the data; the hub's field names."""

    problem_id: int = Field(validation_alias=AliasChoices("problem_id", "id"))
    question: str
    input_output: str = ""
    difficulty: str = ""
    solutions: str = ""
    starter_code: str = ""

    def tests(self) -> dict[str, Any]:
        """``input_output``, which is JSON inside a string; empty if the problem has no test."""
        return _parsed(self.input_output, dict, f"problem {self.problem_id}, input_output") or {}

    def prompt(self, tests: dict[str, Any]) -> str:
        """The published wording, up to where the code begins; ``tests`` says its form."""
        starter = f"\n{self.starter_code}" if self.starter_code else ""
        form = "Call-Based" if tests.get("fn_name") else "Standard Input"
        return f"\nQUESTION:\n{self.question}{starter}\nUse {form} format\nANSWER:\n"


class Apps(ProgramTask):
    """All difficulties; problems without a test are left out, nothing can be said of them."""

    name = "apps"
    stop = ("\nQUESTION:", "\nANSWER:", "\n---")
    max_tokens = 1024
    difficulty = ""
    card = TaskCard(source=HUB_ID, size=5000, licence="MIT", metric="pass@k")

    def load(self, data: Path | None) -> list[Problem]:
        """See ``Task.load``."""
        problems = []
        records = _records(data, "test")
        task_ids = distinct([f"APPS/{record.problem_id}" for record in records])
        for task_id, record in zip(task_ids, records, strict=True):
            tests = record.tests()
            if self.difficulty not in ("", record.difficulty) or not tests.get("inputs"):
                continue
            _require_pairs(record.problem_id, tests)
            content = {"tests": tests, "statement": record.question}
            prompt = record.prompt(tests)
            problems.append(Problem(task_id=task_id, prompt=prompt, data=MappingProxyType(content)))
        if not problems:
            kind = f"{self.difficulty} problem" if self.difficulty else "problem"
            raise DataError(f"data: {data or HUB_ID} contains no {kind} with tests")
        return problems

    def shots(self, data: Path | None, shot_data: Path | None) -> Sequence[Shot]:
        """Problems with their first solution; the hub's train split unless a file is given."""
        shots = []
        for record in _records(shot_data or data, "train"):
            solutions = _parsed(record.solutions, list, f"problem {record.problem_id}, solutions")
            if solutions and self.difficulty in ("", record.difficulty):
                task_id = f"APPS/{record.problem_id}" if shot_data is None and data is not None else None
                answer = str(solutions[0]).replace("\r\n", "\n").rstrip()
                shots.append(Shot(prompt=record.prompt(record.tests()), answer=answer, task_id=task_id))
        return shots

    def program(self, problem: Problem, completion: str) -> str:
        """The completion with the grader's imports; for a call-based problem, a method made a function."""
        name = problem.data["tests"].get("fn_name")
        if not name:
            return GRADER.before(completion)
        method = f"\n{name} = Solution().{name}\n" if "class Solution" in completion else ""
        return STARTER.before(completion) + method

    def entry_point(self, problem: Problem) -> str:
        """See ``ProgramTask.entry_point``."""
        return problem.data["tests"].get("fn_name") or ""

    def tests(self, problem: Problem) -> ProgramTests:
        """The problem's pairs of input and output, compared as its statement asks."""
        tests = problem.data["tests"]
        pairs = list(zip(tests["inputs"], tests["outputs"], strict=True))
        if name := tests.get("fn_name"):
            calls = [CallCase(args=_arguments(args), expected=_readings(output)) for args, output in pairs]
            equal = ValueMatcher(bools_are_numbers=True)
            return ProgramTests(cases=calls, matcher=AnyOfMatcher(equal), entry_point=name)
        cases = [StdinCase(stdin=_text(given), expected=_text(output)) for given, output in pairs]
        return ProgramTests(cases=cases, matcher=matcher_for(problem.data["statement"]))


class AppsIntroductory(Apps):
    """The introductory problems."""

    name = "apps-introductory"
    difficulty = "introductory"
    card = TaskCard(source=HUB_ID, size=1000, licence="MIT", metric="pass@k")


class AppsInterview(Apps):
    """The interview problems."""

    name = "apps-interview"
    difficulty = "interview"
    card = TaskCard(source=HUB_ID, size=3000, licence="MIT", metric="pass@k")


class AppsCompetition(Apps):
    """The competition problems."""

    name = "apps-competition"
    difficulty = "competition"
    card = TaskCard(source=HUB_ID, size=1000, licence="MIT", metric="pass@k")


def _records(data: Path | None, split: str) -> list[AppsRecord]:
    if data is not None:
        return read_records(data, AppsRecord)
    return read_hub(HUB_ID, AppsRecord, splits=[split], files="{split}.jsonl")


def _parsed(text: str, kind: type, where: str) -> Any:  # noqa: ANN401
    """JSON inside a string; None for an empty string."""
    if not text.strip():
        return None
    try:
        value = loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"data: {where}: not JSON inside a string: {error}") from error
    if not isinstance(value, kind):
        raise DataError(f"data: {where}: got a {type(value).__name__}, expected a {kind.__name__}")
    return value


def _require_pairs(problem_id: int, tests: dict[str, Any]) -> None:
    inputs, outputs = tests["inputs"], tests.get("outputs")
    where = f"data: problem {problem_id}, input_output"
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise DataError(f"{where}: inputs and outputs are not lists of one length")
    name = tests.get("fn_name") or "none"
    if not isinstance(name, str) or not name.isidentifier():
        raise DataError(f"{where}: fn_name is not the name of a function")
    if tests.get("fn_name") and not all(isinstance(args, list) for args in inputs):
        raise DataError(f"{where}: inputs of a call-based problem are not lists of arguments")
    if tests.get("fn_name") or not all(isinstance(text, str) for text in [*inputs, *outputs]):
        try:
            encode([inputs, outputs])
        except NoValueError as error:
            raise DataError(f"{where}: holds {error}") from error


def _text(value: Any) -> str:  # noqa: ANN401
    """Standard input or output; some problems give it as a list of lines."""
    return "\n".join(map(_line, value)) if isinstance(value, list) else _line(value)


def _line(value: Any) -> str:  # noqa: ANN401
    """``str(value)``, with integers of any length."""
    if isinstance(value, int) and not isinstance(value, bool):
        return digits_of(value)
    if isinstance(value, list):
        return f"[{', '.join(repr(item) if isinstance(item, str) else _line(item) for item in value)}]"
    return str(value)


def _arguments(args: list[Any]) -> list[Any]:
    """A call's arguments; a dictionary in front gets back its integer keys, which JSON has made text."""
    if args and isinstance(args[0], dict):
        try:
            return [{int(key): value for key, value in args[0].items()}, *args[1:]]
        except ValueError:
            pass
    return list(args)


def _readings(output: Any) -> list[Any]:  # noqa: ANN401
    """What an output may mean: the data wraps most returned values in a list of one, but not all."""
    return [output, output[0]] if isinstance(output, list) and len(output) == 1 else [output]
