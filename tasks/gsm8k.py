"""GSM8K: grade-school word problems with a number as the answer; ``gsm8k.md`` has the details.

Sources: Cobbe et al., "Training verifiers to solve math word problems", arXiv 2110.14168 (data); Wei et al.,
"Chain-of-thought prompting elicits reasoning in large language models", arXiv 2201.11903 (form of the
prompt); Wang et al., "Self-consistency improves chain of thought reasoning", arXiv 2203.11171 (majority).
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import BaseModel

from treeshare.errors import DataError
from treeshare.evals.math_judge import exact_number
from treeshare.evals.problem import CheckResult, Problem, Task
from treeshare.evals.replies import final_answer
from treeshare.evals.sandbox import Verdict
from treeshare.evals.task_card import TaskCard
from treeshare.tasks.reading import read_hub, read_records
from treeshare.tasks.stated_answer import stated_answer
from treeshare.tasks.stated_number import first_number, from_last_statement
from treeshare.tree import Shot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from treeshare.evals.sandbox import Limits, Sandbox

HUB_ID = "openai/gsm8k"

_CALCULATION = re.compile(r"<<[^<>]*>>")

_OWN_SHOTS = (
    (
        "A bakery had 14 loaves on the shelf. The baker added some more, and now there are 23. How many "
        "loaves did the baker add?",
        "The shelf held 14 loaves at first and holds 23 now. The difference was added, 23 - 14 = 9.",
        "9",
    ),
    (
        "Two buses stand at the station. Then five more arrive. How many buses stand there now?",
        "There were 2 buses. 5 more arrived, so there are 2 + 5 = 7.",
        "7",
    ),
    (
        "Mara picked 26 apples and her brother picked 31. They used 38 of them for juice. How many apples "
        "are left?",
        "Together they picked 26 + 31 = 57 apples. After 38 went into the juice, 57 - 38 = 19 are left.",
        "19",
    ),
    (
        "Tom had 30 stickers. He gave some to his sister and has 17 left. How many did he give her?",
        "Tom began with 30 stickers and ended with 17. He gave away 30 - 17 = 13.",
        "13",
    ),
    (
        "Lina owns 6 books. Each of her two aunts gives her 3 books. How many books does she own now?",
        "Two aunts with 3 books each bring 2 * 3 = 6 books. With the 6 she had, that makes 6 + 6 = 12.",
        "12",
    ),
    (
        "A classroom had 8 chairs. On each day from Tuesday to Friday, 4 more chairs were brought in. How "
        "many chairs are in the classroom now?",
        "Tuesday to Friday are 4 days. On each of them 4 chairs came, 4 * 4 = 16 in all. With the 8 from "
        "before, that is 16 + 8 = 24.",
        "24",
    ),
    (
        "Omar had 45 marbles. On Monday he lost 18 of them, and on Tuesday 5 more. How many did he have "
        "at the end of Tuesday?",
        "Omar began with 45 marbles. After Monday he had 45 - 18 = 27. After losing 5 more he had 27 - 5 "
        "= 22.",
        "22",
    ),
    (
        "Nadia has $40. She buys four notebooks for $6 each. How much money does she have left?",
        "Four notebooks at $6 each cost 4 * 6 = 24 dollars. She had 40 dollars, so 40 - 24 = 16 are left.",
        "16",
    ),
)
"""Question, reasoning and answer; the same eight kinds of steps as in Wei et al., in our own wording."""


class Gsm8kRecord(BaseModel):
    """One record of the data; the hub's field names."""

    question: str
    answer: str

    @property
    def prompt(self) -> str:
        """The question, in the form of Wei et al."""
        return f"Q: {self.question}\nA:"

    def shot(self) -> Shot:
        """The record's own solution as a worked example, without the calculator's notes."""
        reasoning, _, answer = _CALCULATION.sub("", self.answer).partition("####")
        lines = [line.strip() for line in reasoning.splitlines() if line.strip()]
        sentences = " ".join(line if line[-1] in ".!?:" else f"{line}." for line in lines)
        return Shot(prompt=self.prompt, answer=f" {sentences} The answer is {answer.strip()}.")


class Gsm8k(Task):
    """The task; eight worked examples unless the user says otherwise."""

    name = "gsm8k"
    stop = ("\nQ:",)
    max_tokens = 256
    num_shots = 8
    needs_sandbox = False
    card = TaskCard(source=HUB_ID, size=1319, licence="MIT", metric="pass@k, majority@k")
    chat_instruction = 'Reason step by step. End with "The answer is N.", N being a number.'

    def load(self, data: Path | None) -> list[Problem]:
        """See ``Task.load``."""
        problems = []
        for i, record in enumerate(_records(data, "test")):
            _, mark, end = record.answer.rpartition("####")
            gold = extract_answer(f"{mark}{end}")  # a solution's words may state other numbers before
            if gold is None or not mark:
                raise DataError(f"data: {data or HUB_ID}, record {i}: no number after ####")
            content = MappingProxyType({"answer": gold, "question": record.question})
            problems.append(Problem(task_id=f"gsm8k/{i}", prompt=record.prompt, data=content))
        return problems

    def shots(self, data: Path | None, shot_data: Path | None) -> Sequence[Shot]:
        """Eight of our own wording, then the train split: ``shot_data``, or the hub's if nothing is local."""
        own = [
            Shot(prompt=f"Q: {question}\nA:", answer=f" {reasoning} The answer is {answer}.")
            for question, reasoning, answer in _OWN_SHOTS
        ]
        if shot_data is None and data is not None:
            return own
        return own + [record.shot() for record in _records(shot_data, "train")]

    def check(
        self, problem: Problem, completion: str, sandbox: Sandbox | None, limits: Limits
    ) -> CheckResult:
        """Compare the extracted number; nothing is run."""
        answer = self.answer(problem, completion)
        if answer == problem.data["answer"]:
            return CheckResult(verdict=Verdict.PASSED, detail="")
        expected = problem.data["answer"]
        detail = "no answer found" if answer is None else f"answered {answer[:60]}, expected {expected[:60]}"
        return CheckResult(verdict=Verdict.WRONG_ANSWER, detail=detail)

    def from_chat(self, problem: Problem, reply: str) -> str:
        r"""The reply without its reasoning, from its last statement on if it makes several.

        Where that is no plain number, such as ``10/2``, it is put into a box after the reply: boxes are read
        as mathematics.
        """
        text = from_last_statement(final_answer(reply))
        stated = stated_answer(text) if extract_answer(text) is None else None
        return f"{text}\n\\boxed{{{stated}}}" if stated and exact_number(stated) is not None else text

    def answer(self, problem: Problem, completion: str) -> str | None:
        """The number that a completion answers: ``extract_answer``, else that of a box, as mathematics."""
        answer = extract_answer(completion)
        if answer is None and "\\boxed" in completion:
            answer = exact_number(stated_answer(completion) or "")
        return answer


def extract_answer(text: str) -> str | None:
    """The number that a solution gives, or None if it gives none.

    It is the first one right after ``####``, ``The answer is`` or ``Answer:``, else the last in a box; a
    number anywhere else is not taken for an answer, nor is a fraction, a time or a range. Thousands
    separators, currencies, units and trailing zeros are dropped, so equal numbers give equal strings:
    ``$1,450.50`` is ``1450.5``, ``18.00`` is ``18``.
    """
    return first_number(text)


def _records(data: Path | None, split: str) -> list[Gsm8kRecord]:
    if data is not None:
        return read_records(data, Gsm8kRecord)
    return read_hub(HUB_ID, Gsm8kRecord, config="main", splits=[split])
