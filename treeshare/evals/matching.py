"""When an answer is right: token by token, numbers within a tolerance, one of several, or by a function.

Matchers are trusted code of a task's author; they see only text and JSON values that a program has produced.
"""

from __future__ import annotations

import math
import operator
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeAlias

from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

Value: TypeAlias = Any
"""Text, or a JSON value; what a test's answer may be is up to its matcher."""

_SHOWN_CHARACTERS = 40
_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")


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
            got: What the program printed, or the JSON value that its function returned.
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
        return _lines_difference(got, expected, operator.eq)


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
            return _lines_difference(got, expected, self._tokens_match)
        return _value_difference(got, expected, self._close)

    def _tokens_match(self, got: str, expected: str) -> bool:
        if got == expected:
            return True
        try:
            return self._close(_number(got), _number(expected))
        except ValueError:
            return False

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
class ValueMatcher(Matcher):
    """Returned values: equal as JSON values. ``1`` equals ``1.0``; ``True`` does not equal ``1``."""

    @property
    def key(self) -> str:
        """See ``Matcher.key``."""
        return "values"

    def difference(self, got: Value, expected: Value, given: Value) -> str | None:
        """See ``Matcher.difference``."""
        return _value_difference(got, expected, operator.eq)


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


def _number(token: str) -> float:
    """The number that a token stands for, an int if it is written as one; ValueError if it is none."""
    return int(token) if _INTEGER.fullmatch(token) else float(token)


def _lines_difference(got: str, expected: str, match: Callable[[str, str], bool]) -> str | None:
    """Compare non-blank lines token by token."""
    lines = [[line.split() for line in text.split("\n") if line.strip()] for text in (got, expected)]
    for number, (ours, theirs) in enumerate(zip_longest(*lines), start=1):
        if ours is None:
            return f"line {number}: nothing, expected {_shown(' '.join(theirs))}"
        if theirs is None:
            return f"line {number}: {_shown(' '.join(ours))}, expected nothing"
        for place, (our, their) in enumerate(zip_longest(ours, theirs), start=1):
            if our is None or their is None or not match(our, their):
                return f"line {number}, token {place}: {_shown(our)}, expected {_shown(their)}"
    return None


def _value_difference(got: Value, expected: Value, match: Callable[[float, float], bool]) -> str | None:
    """Compare nested JSON values without recursion; numbers by ``match``."""
    left = [(got, expected)]
    while left:
        our, their = left.pop()
        if isinstance(our, bool) or isinstance(their, bool):
            same = our is their
        elif isinstance(our, (int, float)) and isinstance(their, (int, float)):
            same = match(our, their)
        elif isinstance(our, (list, tuple)) and isinstance(their, (list, tuple)):
            same = len(our) == len(their)
            left += zip(our, their, strict=False)
        elif isinstance(our, dict) and isinstance(their, dict):
            same = our.keys() == their.keys()
            left += [(our[key], their[key]) for key in our.keys() & their.keys()]
        else:
            same = type(our) is type(their) and our == their
        if not same:
            return f"{_shown(our)}, expected {_shown(their)}"
    return None


def _shown(value: Value) -> str:
    """A value on one line, short."""
    if value is None:
        return "nothing"
    text = repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__} {value!r:.200}"
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
