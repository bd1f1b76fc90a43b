"""CodeContests: contest problems with public and hidden tests; ``code_contests.md`` has the details.

Source: Li et al., "Competition-level code generation with AlphaCode", arXiv 2203.07814.
"""

from __future__ import annotations

import hashlib
import json
import re
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import BaseModel, model_validator

from treeshare.errors import DataError
from treeshare.evals.problem import CheckResult, Problem, ProgramTask
from treeshare.evals.program_tests import ProgramTests, StdinCase, check_program, summed_up
from treeshare.evals.task_card import TaskCard
from treeshare.tasks.reading import distinct, read_hub, read_records
from treeshare.tasks.statements import alphacode_matcher_for
from treeshare.tree import Shot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from treeshare.evals.sandbox import Limits, Sandbox

HUB_ID = "deepmind/code_contests"
PYTHON3 = (3, "PYTHON3")
"""The language as the hub numbers it, and by its name."""

FENCE = "```"
_END_OF_BLOCK = re.compile(r"^ {0,3}`{3,}[ \t]*$", re.MULTILINE)

CLUSTERING_INPUTS = 8
"""Hidden inputs whose outputs tell programs apart; their right outputs play no part in it."""


class Tests(BaseModel):
    """Pairs of input and output, as two lists of one length."""

    input: list[str] = []
    output: list[str] = []

    @model_validator(mode="after")
    def _pairs(self) -> Tests:
        if len(self.input) != len(self.output):
            raise ValueError(f"{len(self.input)} inputs and {len(self.output)} outputs")
        return self

    def pairs(self) -> list[list[str]]:
        """Input and output of each."""
        return [list(pair) for pair in zip(self.input, self.output, strict=True)]


class Solutions(BaseModel):
    """Programs and their languages, as two lists of one length."""

    language: list[int | str] = []
    solution: list[str] = []

    def python(self) -> list[str]:
        """Those in Python 3."""
        pairs = zip(self.language, self.solution, strict=False)
        return [text.replace("\r\n", "\n") for language, text in pairs if language in PYTHON3]


class CodeContestsRecord(BaseModel):
    """One record of the data; the hub's field names."""

    name: str
    description: str
    public_tests: Tests = Tests()
    private_tests: Tests = Tests()
    generated_tests: Tests = Tests()
    solutions: Solutions = Solutions()

    @property
    def prompt(self) -> str:
        """The statement, and an opened code block to be continued."""
        return (
            f"{self.description.strip()}\n\n"
            f"A Python 3 program that reads standard input and prints the answer:\n{FENCE}python\n"
        )


class CodeContests(ProgramTask):
    """The task; public tests filter, private and generated ones decide."""

    name = "code-contests"
    stop = (FENCE,)
    max_tokens = 1024
    card = TaskCard(source=HUB_ID, size=165, licence="CC BY 4.0", metric="pass@k, n@k")

    def load(self, data: Path | None) -> list[Problem]:
        """See ``Task.load``."""
        problems = []
        records = _records(data, "test")
        for task_id, record in zip(distinct([record.name for record in records]), records, strict=True):
            public = record.public_tests.pairs()
            hidden = record.private_tests.pairs() + record.generated_tests.pairs()
            if not public and not hidden:
                continue
            content = {
                "public": public,
                "hidden": hidden,
                "statement": record.description,
                "solutions": record.solutions.python(),
            }
            problems.append(Problem(task_id=task_id, prompt=record.prompt, data=MappingProxyType(content)))
        if not problems:
            raise DataError(f"data: {data or HUB_ID} contains no problem with tests")
        return problems

    def shots(self, data: Path | None, shot_data: Path | None) -> Sequence[Shot]:
        """Problems with a Python 3 solution; the hub's train split unless a file is given."""
        return [
            Shot(prompt=record.prompt, answer=f"{record.solutions.python()[0].rstrip()}\n{FENCE}")
            for record in _records(shot_data or data, "train")
            if record.solutions.python()
        ]

    def program(self, problem: Problem, completion: str) -> str:
        """The completion, up to the end of its block."""
        return _END_OF_BLOCK.split(completion, maxsplit=1)[0]

    def fingerprint(self, problem: Problem, completion: str, limits: Limits) -> str | None:
        """See ``Task.fingerprint``; which tests are public belongs to it."""
        return f"{len(problem.data['public'])}\n{super().fingerprint(problem, completion, limits)}"

    def entry_point(self, problem: Problem) -> str:
        """See ``ProgramTask.entry_point``: none, standard input is given."""
        return ""

    def tests(self, problem: Problem) -> ProgramTests:
        """All tests, the public ones first."""
        pairs = problem.data["public"] + problem.data["hidden"]
        cases = [StdinCase(stdin=given, expected=output) for given, output in pairs]
        return ProgramTests(cases=cases, matcher=alphacode_matcher_for(problem.data["statement"]))

    def check(
        self, problem: Problem, completion: str, sandbox: Sandbox | None, limits: Limits
    ) -> CheckResult:
        """Run the public tests, then the others if it was right on those; then sign it for clustering."""
        assert sandbox is not None
        program, tests = self.program(problem, completion), self.tests(problem)
        results = check_program(program, tests, sandbox, limits=self.limits(problem, limits))
        result = summed_up(results, tests)
        public = results[: len(problem.data["public"])]
        passed_public = all(result.passed for result in public) if public else None
        signature = None
        if passed_public is not False:
            signature = self._signature(problem, program, sandbox, limits)
        return CheckResult(
            verdict=result.verdict, detail=result.detail, passed_public=passed_public, signature=signature
        )

    def _signature(self, problem: Problem, program: str, sandbox: Sandbox, limits: Limits) -> str:
        """A hash of how the program ends and what it prints, token by token, on some hidden inputs."""
        digest = hashlib.sha256()
        for given, _ in problem.data["hidden"][:CLUSTERING_INPUTS]:
            execution = sandbox.run(program, stdin=given.encode("utf-8", "surrogatepass"), limits=limits)
            ended = [str(execution.verdict), execution.stdout.decode("utf-8", "replace").split()]
            digest.update(json.dumps(ended).encode() + b"\n")
        return digest.hexdigest()


def _records(data: Path | None, split: str) -> list[CodeContestsRecord]:
    if data is not None:
        return read_records(data, CodeContestsRecord)
    return read_hub(HUB_ID, CodeContestsRecord, splits=[split])
