"""Mathematics with one answer: records, prompts and the judge that MATH-500, AIME and AMC share."""

from __future__ import annotations

import functools
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from pydantic import AliasChoices, BaseModel, Field

from treeshare.errors import DataError
from treeshare.evals.math_judge import MathJudge
from treeshare.evals.problem import CheckResult, Problem, Task
from treeshare.evals.replies import final_answer
from treeshare.evals.sandbox import Verdict
from treeshare.tasks.boxed_answer import first_answer, from_last_answer
from treeshare.tasks.reading import read_hub, read_records, require_unique

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from treeshare.evals.sandbox import Limits, Sandbox

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
"""What stands behind a problem for a chat model, as Qwen2.5-Math and DeepSeek-R1 were measured."""

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


@functools.cache
def judge() -> MathJudge:
    """One judge for all tasks: it keeps what it has read."""
    return MathJudge()


class MathTask(Task):
    """A task whose completions state one answer; nothing of them is run.

    Attributes:
        source: The hub's data set.
        split: Its split.
        form: The prompt, with ``{problem}`` in it.
        answers_are_integers: Whether data with another answer is refused.
    """

    needs_sandbox = False
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
            content = MappingProxyType({"answer": record.gold, "problem": record.problem})
            problems.append(
                Problem(
                    task_id=f"{self.name}/{name}",
                    prompt=self.form.replace("{problem}", record.problem),
                    data=content,
                    chat_prompt=record.problem + BOXED,
                )
            )
        return require_unique(problems, data or self.source)

    def records(self, data: Path | None) -> Sequence[MathRecord]:
        """The data's records."""
        if data is not None:
            return read_records(data, MathRecord)
        return read_hub(self.source, MathRecord, splits=[self.split])

    def from_chat(self, problem: Problem, reply: str) -> str:
        """The reply without its reasoning, from its last answer on if it states several."""
        return from_last_answer(final_answer(reply))

    def answer(self, problem: Problem, completion: str) -> str | None:
        """The answer that a completion states, as it is written."""
        return first_answer(completion)

    def check(
        self, problem: Problem, completion: str, sandbox: Sandbox | None, limits: Limits
    ) -> CheckResult:
        """Judge the stated answer; see ``treeshare.evals.math_judge``."""
        answer = self.answer(problem, completion)
        if answer is None:
            return CheckResult(verdict=Verdict.WRONG_ANSWER, detail="no answer found")
        judgement = judge().judge(problem.data["answer"], answer)
        if judgement.right:
            return CheckResult(verdict=Verdict.PASSED, detail="")
        verdict = Verdict.WRONG_ANSWER if judgement.is_decided else Verdict.UNDECIDED
        return CheckResult(verdict=verdict, detail=f"answered {answer[:60]}: {judgement.reason}")
