"""MBPP: short Python problems, each with three tests; ``mbpp.md`` has the details.

Source: Austin et al., "Program synthesis with large language models", arXiv 2108.07732.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import AliasChoices, BaseModel, Field

from treeshare.errors import DataError
from treeshare.evals.problem import CodeTask, Problem
from treeshare.evals.replies import free_names
from treeshare.evals.sandbox import OutsideTests
from treeshare.evals.task_card import TaskCard
from treeshare.tasks.reading import read_hub, read_records, require_unique
from treeshare.tree import Shot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HUB_ID = "google-research-datasets/mbpp"
SPLITS = ("prompt", "test", "validation", "train")
PUBLISHED_SHOTS = (2, 3, 4)
TEST_IDS = range(11, 511)
DONE = "[DONE]"


class MbppRecord(BaseModel):
    """One record of the full or the sanitized data; the hub's field names."""

    task_id: int
    text: str = Field(validation_alias=AliasChoices("text", "prompt"))
    code: str
    test_list: list[str] = Field(min_length=1)
    test_setup_code: str = ""
    test_imports: list[str] = []

    @property
    def prompt(self) -> str:
        """The published wording, up to where the code begins."""
        tests = "\n".join(self.test_list)
        return (
            f"You are an expert Python programmer, and here is your task: {self.text} "
            f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
        )

    @property
    def solution(self) -> str:
        """The reference code, with plain line ends: the full data has CRLF, which a model would imitate."""
        return self.code.replace("\r\n", "\n")


class Mbpp(CodeTask):
    """All 974 problems; a local file, full or sanitized, is taken as it is."""

    name = "mbpp"
    stop = (DONE,)
    max_tokens = 512
    num_shots = 3
    config = "full"
    ids: range | None = None
    card = TaskCard(source=HUB_ID, size=974, licence="CC BY 4.0", metric="pass@k")

    def load(self, data: Path | None) -> list[Problem]:
        """See ``Task.load``."""
        problems = [
            Problem(
                task_id=f"Mbpp/{record.task_id}",
                prompt=record.prompt,
                data=MappingProxyType(
                    {
                        "solution": record.solution,
                        "imports": "\n".join(record.test_imports),
                        "setup": record.test_setup_code.replace("\r\n", "\n"),
                        "tests": "\n".join(record.test_list),
                    }
                ),
            )
            for record in self._records(data)
            if self.ids is None or record.task_id in self.ids
        ]
        if not problems:
            raise DataError(
                f"data: {data} contains no problem of the test split, ids 11 to 510; use --task mbpp"
            )
        return require_unique(problems, data or HUB_ID)

    def shots(self, data: Path | None, shot_data: Path | None) -> Sequence[Shot]:
        """The published three, the rest of the prompt split, then the train split (ids 601 to 974)."""
        records = {record.task_id: record for record in self._records(shot_data or data)}
        missing = [str(task_id) for task_id in PUBLISHED_SHOTS if task_id not in records]
        if missing:
            raise DataError(
                f"shots: {shot_data or data} lacks the published worked examples, ids {', '.join(missing)}; "
                "give a file that has them as --shot-data, or --shots 0"
            )
        others = [i for i in records if i not in PUBLISHED_SHOTS and (i <= 10 or i > 600)]
        return [
            Shot(
                task_id=f"Mbpp/{task_id}",
                prompt=records[task_id].prompt,
                answer=f"{records[task_id].solution}\n{DONE}",
            )
            for task_id in [*PUBLISHED_SHOTS, *others]
        ]

    def wanted_names(self, problem: Problem) -> frozenset[str]:
        """See ``CodeTask.wanted_names``."""
        return free_names("\n".join(problem.data[part] for part in ("imports", "setup", "tests")))

    def program(self, problem: Problem, completion: str) -> str:
        """The completion's code."""
        return completion.split(DONE)[0]

    def tests(self, problem: Problem) -> OutsideTests:
        """What the tests need, then the tests.

        The set-up makes objects of the classes that the code defines; these stay in the code's process.
        """
        parts = [problem.data[part] for part in ("imports", "setup", "tests")]
        source = "\n".join(part for part in parts if part) + "\n"
        return OutsideTests(source=source, reference=problem.data["solution"])

    def solution(self, problem: Problem, completion: str) -> str | None:
        """See ``Task.solution``: the completion's code alone, as the prompt is not Python."""
        return completion.split(DONE)[0]

    def _records(self, data: Path | None) -> list[MbppRecord]:
        if data is not None:
            return read_records(data, MbppRecord)
        return read_hub(HUB_ID, MbppRecord, config=self.config, splits=SPLITS)


class MbppTest(Mbpp):
    """The test split that the paper reports on: 500 problems, ids 11 to 510."""

    name = "mbpp-test"
    ids = TEST_IDS
    card = TaskCard(source=HUB_ID, size=500, licence="CC BY 4.0", metric="pass@k")


class MbppSanitized(Mbpp):
    """The 427 problems that the authors checked by hand."""

    name = "mbpp-sanitized"
    config = "sanitized"
    card = TaskCard(source=HUB_ID, size=427, licence="CC BY 4.0", metric="pass@k")


class MbppSanitizedTest(MbppSanitized):
    """Its test split: 257 problems."""

    name = "mbpp-sanitized-test"
    ids = TEST_IDS
    card = TaskCard(source=HUB_ID, size=257, licence="CC BY 4.0", metric="pass@k")
