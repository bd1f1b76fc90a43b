"""Mathematics with one answer: records, prompts and the judge that MATH-500, AIME and AMC share."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import AliasChoices, BaseModel, Field

from treeshare.errors import DataError
from treeshare.evals.check_result import CheckResult
from treeshare.evals.sandbox import Verdict
from treeshare.tasks.answer_task import AnswerTask
from treeshare.tasks.reading import read_hub, read_records, require_unique
from treeshare.tasks.stated_answer import stated_answer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from treeshare.evals.problem import Problem
    from treeshare.evals.sandbox import Limits, Sandbox

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
"""What a chat model is told, as Qwen2.5-Math and DeepSeek-R1 were when they were measured."""

_WHOLE = re.compile(r"-?[0-9]{1,18}")


class MathRecord(BaseModel):
    """One record of the data, in the field names of several sets of the hub."""

    problem: str = Field(validation_alias=AliasChoices("problem", "Problem", "question"))
    answer: str | int | float = Field(
        validation_alias=AliasChoices("answer", "Answer", "expected_answer"), union_mode="left_to_right"
    )
    solution: str = Field(
        default="", validation_alias=AliasChoices("solution", "Solution", "reference_solution")
    )
    id: str | int | None = Field(default=None, validation_alias=AliasChoices("unique_id", "id", "ID"))

    @property
    def gold(self) -> str:
        """The answer as text; a float that is a whole number is one."""
        answer = self.answer
        if isinstance(answer, float) and answer.is_integer():
            answer = int(answer)
        return str(answer).strip()


class MathTask(AnswerTask):
    """A task whose completions state one answer; nothing of them is run.

    Attributes:
        source: The hub's data set.
        split: Its split.
        form: The prompt, with ``{problem}`` in it.
        answers_are_integers: Whether data with another answer is refused.
    """

    judge = "math"
    chat_instruction = BOXED
    chat_num_shots = 0
    max_tokens = 2048
    source: ClassVar[str]
    split: ClassVar[str] = "test"
    form: ClassVar[str]
    answers_are_integers: ClassVar[bool] = False

    def load(self, data: Path | None) -> list[Problem]:
        """See ``Task.load``."""
        problems = []
        for i, record in enumerate(self.records(data)):
            if not record.gold or (self.answers_are_integers and not _WHOLE.fullmatch(record.gold)):
                expected = "a whole number" if self.answers_are_integers else "some text"
                where = f"data: {data or self.source}, record {i}, answer"
                raise DataError(f"{where}: {record.gold[:40]!r}, expected {expected}")
            name = str(i if record.id is None else record.id)
            prompt = self.form.replace("{problem}", record.problem)
            problem = self.problem(f"{self.name}/{name}", prompt, record.gold, problem=record.problem)
            problems.append(replace(problem, chat_prompt=record.problem))
        return require_unique(problems, data or self.source)

    def records(self, data: Path | None) -> Sequence[MathRecord]:
        """The data's records."""
        if data is not None:
            return read_records(data, MathRecord)
        return read_hub(self.source, MathRecord, splits=[self.split])

    def find(self, completion: str) -> str | None:
        """The answer that a completion states: in its last box, else after the first words that tell it."""
        return stated_answer(completion, first=True)

    def answer(self, problem: Problem, completion: str) -> str | None:
        """See ``Task.answer``."""
        return self.find(completion)

    def check(
        self, problem: Problem, completion: str, sandbox: Sandbox | None, limits: Limits
    ) -> CheckResult:
        """Judge the stated answer; see ``treeshare.evals.math_judge``."""
        answer = self.find(completion)
        if answer is None:
            return CheckResult(verdict=Verdict.WRONG_ANSWER, detail="no answer found")
        return self.answers.check(problem.data["answer"], answer)
