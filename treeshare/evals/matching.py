"""Comparing output: token by token, numbers within a tolerance, one of several, or by a function.

Matchers are trusted code of a task's author; they see only text and JSON values that a program has produced.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from treeshare.errors import ConfigError
from treeshare.evals.json_values import numbers_equal, value_difference
from treeshare.evals.outputs import alphacode_difference, alphacode_match, lines_difference, numbers_close

if TYPE_CHECKING:
    from collections.abc import Callable

Value: TypeAlias = Any
"""Text, or a JSON value; what a test's answer may be is up to its matcher."""


class Matcher(ABC):
    """Says whether an answer is right.

    Attributes:
        decides: Whether an answer that does not match is wrong. If not, others may be right too.
    """

    decides: bool = True

    @property
    @abstractmethod
    def key(self) -> str:
        """Names the rule with its parameters; verdicts under another key are not reused."""

    @abstractmethod
    def difference(self, got: Value, expected: Value, given: Value) -> str | None:
        """None if ``got`` is right, else one line on what differs.

        Args:
            got: What the program printed, or the JSON value that equals what its function returned.
            expected: The test's answer.
            given: The test's input: text, or the list of arguments.
        """


@dataclass(frozen=True)
class TokenMatcher(Matcher):
    """Printed text: the same tokens on the same lines; blank lines and spaces around tokens do not count."""

    @property
    def key(self) -> str:
        """See ``Matcher.key``."""
        return "tokens"

    def difference(self, got: Value, expected: Value, given: Value) -> str | None:
        """See ``Matcher.difference``."""
        return lines_difference(got, expected, operator.eq)


@dataclass(frozen=True)
class FloatMatcher(Matcher):
    """As ``TokenMatcher`` and ``ValueMatcher``, but where a number is expected, one close to it will do.

    A number is close if it is within ``absolute``, or within ``relative`` times the expected one. Two
    integers must be equal: an answer of 1000000001 is not 1000000000.
    """

    relative: float = 1e-6
    absolute: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("relative", "absolute"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError.of(name, got=getattr(self, name), expected="from 0 to below 1")

    @property
    def key(self) -> str:
        """See ``Matcher.key``."""
        return f"floats({self.relative!r},{self.absolute!r})"

    def difference(self, got: Value, expected: Value, given: Value) -> str | None:
        """See ``Matcher.difference``."""
        if isinstance(got, str) and isinstance(expected, str):
            return lines_difference(got, expected, self._tokens_match)
        return value_difference(got, expected, self._close)

    def _tokens_match(self, got: str, expected: str) -> bool:
        return got == expected or numbers_close(got, expected, relative=self.relative, absolute=self.absolute)

    def _close(self, got: float, expected: float) -> bool:
        if isinstance(got, int) and isinstance(expected, int):
            return got == expected
        try:
            if math.isnan(expected):
                return math.isnan(got)
            return math.isclose(got, expected, rel_tol=0, abs_tol=self._tolerance(expected))
        except OverflowError:  # an integer beyond the floats
            return False

    def _tolerance(self, expected: float) -> float:
        """Zero at an infinity, which only itself is close to."""
        return max(self.absolute, self.relative * abs(expected)) if math.isfinite(expected) else 0.0


@dataclass(frozen=True)
class AlphaCodeMatcher(Matcher):
    """Printed text as AlphaCode's tester compares it.

    The same tokens, however white space and lines part them, letters of ASCII in any case; two numbers may be
    less than 1e-5 apart. Stricter than there in one thing: two integers are equal or not, also beyond 2**53.
    Wider in another: infinities and numbers beyond the doubles equal themselves.

    Attributes:
        tolerance: What a statement allows besides, absolute or relative; see ``FloatMatcher``.
    """

    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise ConfigError.of("tolerance", got=self.tolerance, expected="from 0 to below 1")

    @property
    def key(self) -> str:
        """See ``Matcher.key``."""
        return f"alphacode({self.tolerance!r})"

    def difference(self, got: Value, expected: Value, given: Value) -> str | None:
        """See ``Matcher.difference``."""
        return alphacode_difference(got, expected, self._match)

    def _match(self, got: str, expected: str) -> bool:
        return alphacode_match(got, expected) or (
            self.tolerance > 0
            and numbers_close(got, expected, relative=self.tolerance, absolute=self.tolerance)
        )


@dataclass(frozen=True)
class ValueMatcher(Matcher):
    """Returned values: equal as JSON values. ``1`` equals ``1.0``.

    Attributes:
        bools_are_numbers: Whether ``True`` equals ``1``, as Python's ``==`` has it.
    """

    bools_are_numbers: bool = False

    @property
    def key(self) -> str:
        """See ``Matcher.key``."""
        return "values(bools are numbers)" if self.bools_are_numbers else "values"

    def difference(self, got: Value, expected: Value, given: Value) -> str | None:
        """See ``Matcher.difference``."""
        return value_difference(got, expected, numbers_equal, bools_are_numbers=self.bools_are_numbers)


@dataclass(frozen=True)
class AnyOfMatcher(Matcher):
    """The test's answer is a list of all the right ones."""

    each: Matcher

    @property
    def key(self) -> str:
        """See ``Matcher.key``."""
        return f"any({self.each.key})"

    def difference(self, got: Value, expected: Value, given: Value) -> str | None:
        """See ``Matcher.difference``."""
        found = None
        for answer in expected:
            found = self.each.difference(got, answer, given)
            if found is None:
                return None
        return f"none of {len(expected)} right answers; of the last one: {found}"


@dataclass(frozen=True, kw_only=True)
class FunctionMatcher(Matcher):
    """A checker for one problem, as a function with the arguments and the result of ``difference``."""

    name: str
    function: Callable[[Value, Value, Value], str | None]

    @property
    def key(self) -> str:
        """``name``: to be changed when the function changes."""
        return f"function({self.name})"

    def difference(self, got: Value, expected: Value, given: Value) -> str | None:
        """See ``Matcher.difference``."""
        return self.function(got, expected, given)


@dataclass(frozen=True)
class UnknownMatcher(Matcher):
    """One right answer is known, others exist, and no checker: a match passes, anything else is undecided.

    Printing nothing where something is expected stays wrong.
    """

    known: Matcher
    decides = False

    @property
    def key(self) -> str:
        """See ``Matcher.key``."""
        return f"unknown({self.known.key})"

    def difference(self, got: Value, expected: Value, given: Value) -> str | None:
        """See ``Matcher.difference``."""
        return self.known.difference(got, expected, given)
