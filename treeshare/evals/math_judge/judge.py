r"""A judge for mathematics: whether an answer is what the data says, in layers, each with its limits.

1. *normal form*: the same text, ways to write it ignored.
2. *exact numbers*: fractions, decimals, roots, polynomials in one form; nothing is rounded.
3. *types*: words, numbers with a unit, a base or a percent sign, tuples, intervals, sets, lists, matrices,
   equations; see ``answers``.
4. *symbols*: sympy, in a child process with limits of time and memory.

What no layer finds equal is wrong, with the reason. ``docs/math_judge.md`` says what is
equal and what is not.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treeshare.evals.math_judge.answers import exact
from treeshare.evals.math_judge.compare import Outcome, compare
from treeshare.evals.math_judge.reading import read_answer
from treeshare.evals.math_judge.symbols import SympySymbols
from treeshare.evals.math_judge.tokens import MAX_CHARS

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from treeshare.evals.helper_process import HelperLimits
    from treeshare.evals.math_judge.answers import Answer
    from treeshare.evals.math_judge.compare import Layer

_KEPT = 4096
"""Answers that are kept as they were read, and verdicts."""

_MAX_PLACES = 600


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the judge says.

    Attributes:
        right: Whether the answer is equal to the gold one. False too where nobody could tell.
        is_decided: Whether somebody could; only where sympy is not installed nobody can.
        layer: The layer that decided.
        reason: One line: how both are equal, or why they are not.
    """

    right: bool
    is_decided: bool = True
    layer: Layer
    reason: str


class MathJudge:
    r"""Judges answers; keeps its child process for the next ones. Safe to use from several threads.

    Example:
        >>> with MathJudge() as judge:
        ...     judge.judge(r"\\frac{3}{4}", "0.75").right
        True

    Args:
        limits: What one symbolic comparison may use.
    """

    def __init__(self, limits: HelperLimits | None = None) -> None:
        self.symbols = SympySymbols(limits)
        self._lock = threading.Lock()
        self._kept_answer = functools.lru_cache(_KEPT)(read_answer)
        self._judgements: OrderedDict[tuple[str, str, bool], Judgement] = OrderedDict()

    def judge(self, gold: str, answer: str) -> Judgement:
        """Whether ``answer`` is right.

        An empty text is never right. The order of the two does not matter.

        Args:
            gold: What the data gives, without a box and, at will, without ``$``.
            answer: What a reply answers; see ``treeshare.tasks.stated_answer``.
        """
        return self._judged(gold, answer, strict=False)

    def same(self, first: str, second: str) -> bool:
        """Whether two answers are the same, units, bases and percent signs too: an equivalence, for votes."""
        return self._judged(first, second, strict=True).right

    def close(self) -> None:
        """End the child process; the judge can still be used."""
        self.symbols.helper.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, text: str) -> Answer:
        """What a text is, as the layers see it."""
        return read_answer(text) if len(text) > MAX_CHARS else self._kept_answer(text)

    def _judged(self, gold: str, answer: str, *, strict: bool) -> Judgement:
        key = (gold, answer, strict)
        with self._lock:
            known = self._judgements.get(key)
        if known is not None:
            return known
        outcome = self._outcome(self.read(gold), self.read(answer), strict=strict)
        found = Judgement(
            right=outcome.right is True,
            is_decided=outcome.right is not None,
            layer=outcome.layer,
            reason=outcome.reason,
        )
        if len(gold) + len(answer) > 2 * MAX_CHARS:
            return found
        with self._lock:
            self._judgements[key] = found
            if len(self._judgements) > _KEPT:
                self._judgements.popitem(last=False)
        return found

    def _outcome(self, gold: Answer, answer: Answer, *, strict: bool) -> Outcome:
        if not gold.normal or not answer.normal:
            return Outcome(right=False, layer="normal form", reason="an empty answer")
        if gold.normal == answer.normal:
            return Outcome(right=True, layer="normal form", reason="the same text")
        try:
            return compare(gold, answer, self.symbols, strict=strict)
        except RecursionError:
            return Outcome(right=False, layer="types", reason="nested too deep")


def exact_number(text: str) -> str | None:
    """The rational number that a text is, in one form: digits where they end, else a fraction; else None.

    What stands beside the number, such as a unit, is ignored.
    """
    value = exact(read_answer(text).value)
    if value is None:
        return None
    twos, fives, rest = 0, 0, value.denominator
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    if rest != 1 or places > _MAX_PLACES:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
    return ("-" if value < 0 else "") + whole + (f".{decimals}" if decimals else "")
