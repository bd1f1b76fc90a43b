"""Judges of answers, for tasks that run no code: text, a number, mathematics, a pattern, a choice."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from treeshare.errors import ConfigError, DataError, one_line
from treeshare.evals.check_result import CheckResult
from treeshare.evals.math_judge import MathJudge
from treeshare.evals.pattern_search import PatternSearch
from treeshare.evals.sandbox import Verdict
from treeshare.evals.votes import answer_classes
from treeshare.tasks.stated_answer import stated_answer
from treeshare.tasks.stated_number import first_number

if TYPE_CHECKING:
    from collections.abc import Iterable

_LABEL = r"(?P<{}>[A-Za-z]|\d{{1,2}})"
_MARKUP = r"(?:[\s*_`(\[{$]|\\(?:text|textbf|mathbf|mathrm)\{|option\b|choice\b){0,8}+"
_CHOICE = re.compile(
    rf"{_MARKUP}{_LABEL.format('label')}(?![\w'])(?!\s+(?:[a-z]{{2,}}\s+){{2}})", re.IGNORECASE
)
_BRACKETED = re.compile(r"(?<![\w(])\(([A-Z])\)|\*\*\(?([A-Z])[).:]?\*\*|(?<!\w)([A-Z])[).](?=\s)")
_GOLD = re.compile(r"\(?\s*([A-Za-z]|\d{1,2})\s*[).:]?")


class AnswerJudge(ABC):
    """Says what of a completion is its answer, and whether it is right.

    Attributes:
        name: As on the command line.
        instruction: What a chat model is told.
    """

    name: ClassVar[str]
    instruction: ClassVar[str] = 'End with "The answer is X.", X being the answer alone.'

    def gold(self, text: str) -> str:
        """The data's answer in this judge's form.

        Raises:
            DataError: If it is none.
        """
        if not text.strip():
            raise DataError("an empty answer")
        return text

    def find(self, completion: str) -> str | None:
        """The answer that a completion gives; None if it gives none."""
        return stated_answer(completion, first=True)

    @abstractmethod
    def check(self, gold: str, answer: str) -> CheckResult:
        """Whether an answer is right."""

    def classes(self, answers: Iterable[str]) -> list[list[str]]:
        """Answers that are the same: each in a class of its own, by default."""
        return answer_classes(answers)


class ExactJudge(AnswerJudge):
    """The same text; white space counts once."""

    name = "exact"

    def gold(self, text: str) -> str:
        """See ``AnswerJudge.gold``."""
        return " ".join(super().gold(text).split())

    def find(self, completion: str) -> str | None:
        """See ``AnswerJudge.find``."""
        found = stated_answer(completion, first=True)
        return None if found is None else " ".join(found.split())

    def check(self, gold: str, answer: str) -> CheckResult:
        """See ``AnswerJudge.check``."""
        return _checked(gold, answer)


class NumberJudge(AnswerJudge):
    """The same number, exactly; see ``stated_number``."""

    name = "number"
    instruction = 'Reason step by step. End with "The answer is N.", N being a number.'

    def gold(self, text: str) -> str:
        """See ``AnswerJudge.gold``."""
        found = first_number(f"#### {super().gold(text).rpartition('####')[2]}")
        if found is None:
            raise DataError(f"got {one_line(text, 40)!r}, expected a number")
        return found

    def find(self, completion: str) -> str | None:
        """See ``AnswerJudge.find``."""
        found = first_number(completion)
        if found is None and "\n" not in completion.strip():
            found = first_number(f"#### {completion}")
        return found

    def check(self, gold: str, answer: str) -> CheckResult:
        """See ``AnswerJudge.check``."""
        return _checked(gold, answer)


class MathematicsJudge(AnswerJudge):
    """Equal as mathematics; see ``treeshare.evals.math_judge``.

    Args:
        judge: Kept for all answers; a new one by default.
    """

    name = "math"
    instruction = "Reason step by step, and put your final answer within \\boxed{}."

    def __init__(self, judge: MathJudge | None = None) -> None:
        self.judge = judge or MathJudge()

    def check(self, gold: str, answer: str) -> CheckResult:
        """See ``AnswerJudge.check``."""
        found = self.judge.judge(gold, answer)
        if found.right:
            return CheckResult(verdict=Verdict.PASSED, detail="")
        verdict = Verdict.WRONG_ANSWER if found.is_decided else Verdict.UNDECIDED
        return CheckResult(
            verdict=verdict, detail=f"{_other_than(gold, answer)}; {found.layer}: {found.reason}"
        )

    def classes(self, answers: Iterable[str]) -> list[list[str]]:
        """Classes of equivalent answers."""
        return answer_classes(answers, same=self.judge.same, alike=lambda a, b: self.judge.judge(a, b).right)


class RegexJudge(AnswerJudge):
    """The data gives a pattern of Python's ``re``, to be found in the completion; nothing votes.

    Patterns are searched for in another process, with a limit of time: one that would take for ever is not
    found.
    """

    name = "regex"

    def __init__(self) -> None:
        self._search = PatternSearch()

    def gold(self, text: str) -> str:
        """See ``AnswerJudge.gold``."""
        fault = self._search.fault(super().gold(text))
        if fault:
            raise DataError(f"got {one_line(text, 40)!r}, expected a pattern: {one_line(fault)}")
        return text

    def find(self, completion: str) -> str | None:
        """See ``AnswerJudge.find``: all of it."""
        return completion

    def check(self, gold: str, answer: str) -> CheckResult:
        """See ``AnswerJudge.check``."""
        found, reason = self._search.search(gold, answer)
        return CheckResult(verdict=Verdict.PASSED if found else Verdict.WRONG_ANSWER, detail=reason)


class ChoiceJudge(AnswerJudge):
    """One of several labels: a letter, in any case, or a number; with or without brackets."""

    name = "choice"
    instruction = 'End with "The answer is (X).", X being the letter of your choice.'

    def gold(self, text: str) -> str:
        """See ``AnswerJudge.gold``."""
        found = _GOLD.fullmatch(super().gold(text).strip())
        if found is None:
            raise DataError(f"got {one_line(text, 40)!r}, expected a choice's letter or number")
        return found[1].upper()

    def find(self, completion: str) -> str | None:
        """See ``AnswerJudge.find``: what is stated, else how the completion begins, else its last label."""
        stated = stated_answer(completion, first=True)
        for text in (stated, completion):
            found = _CHOICE.match(text) if text else None
            if found:
                return found["label"].upper()
        last = None
        for found in _BRACKETED.finditer(completion):
            last = found
        return None if last is None else last[1] or last[2] or last[3]

    def check(self, gold: str, answer: str) -> CheckResult:
        """See ``AnswerJudge.check``."""
        return _checked(gold, answer)


_JUDGES: dict[str, type[AnswerJudge]] = {
    judge.name: judge for judge in (ExactJudge, NumberJudge, MathematicsJudge, RegexJudge, ChoiceJudge)
}


def answer_judge(name: str) -> AnswerJudge:
    """The judge of a name.

    Raises:
        ConfigError: If there is none; the message lists those there are.
    """
    if name not in _JUDGES:
        raise ConfigError.of("--judge", got=name, expected="one of " + ", ".join(_JUDGES))
    return _JUDGES[name]()


def _checked(gold: str, answer: str) -> CheckResult:
    if answer == gold:
        return CheckResult(verdict=Verdict.PASSED, detail="")
    return CheckResult(verdict=Verdict.WRONG_ANSWER, detail=_other_than(gold, answer))


def _other_than(gold: str, answer: str) -> str:
    return f"answered {one_line(answer, 60)}, expected {one_line(gold, 60)}"
