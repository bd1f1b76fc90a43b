"""Printed text: its tokens, the numbers among them, and where two texts differ.

Numbers are compared as they are written, exactly, whatever their length: as floats, all beyond 1e308 would be
one. All of it takes linear time.
"""

from __future__ import annotations

import re
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, InvalidOperation
from itertools import zip_longest
from typing import TYPE_CHECKING

from treeshare.evals.json_values import shown

if TYPE_CHECKING:
    from collections.abc import Callable

_NUMBER = re.compile(r"[+-]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][+-]?+[0-9]++)?+")
_INTEGER = re.compile(r"[+-]?+[0-9]++")
_INFINITY = re.compile(r"([+-]?)inf(?:inity)?", re.IGNORECASE)

_ARITHMETIC = Context(prec=30, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
"""For differences: their operands are exact, they are rounded to 30 digits."""

_ALPHACODE_TOLERANCE = 1e-5
_ALPHACODE_SPACES = bytes.maketrans(b"\n\t\r\v", b"    ")


def lines_difference(got: str, expected: str, match: Callable[[str, str], bool]) -> str | None:
    """Where two texts differ, token by token, line by line; blank lines do not count."""
    lines = [[line.split() for line in text.split("\n") if line.strip()] for text in (got, expected)]
    for number, (ours, theirs) in enumerate(zip_longest(*lines), start=1):
        if ours is None:
            return f"line {number}: nothing, expected {shown(' '.join(theirs))}"
        if theirs is None:
            return f"line {number}: {shown(' '.join(ours))}, expected nothing"
        for place, (our, their) in enumerate(zip_longest(ours, theirs), start=1):
            if our is None or their is None or not match(our, their):
                return f"line {number}, token {place}: {shown(our)}, expected {shown(their)}"
    return None


def alphacode_difference(got: str, expected: str, match: Callable[[str, str], bool]) -> str | None:
    """Where two texts differ for AlphaCode's tester: its white space is all alike, so is the case of letters.

    Args:
        got: What was printed.
        expected: What should have been.
        match: Whether two tokens that differ are alike.
    """
    ours, theirs = _alphacode_tokens(got), _alphacode_tokens(expected)
    if ours == theirs:
        return None
    for place, (our, their) in enumerate(zip_longest(ours, theirs), start=1):
        if our != their and (our is None or their is None or not match(our, their)):
            return f"token {place}: {shown(our)}, expected {shown(their)}"
    return None


def alphacode_match(got: str, expected: str) -> bool:
    """Whether two numbers are alike for AlphaCode's tester: less than 1e-5 apart as doubles.

    Unlike there, two integers have to be equal also beyond 2**53.
    """
    if not _NUMBER.fullmatch(got) or not _NUMBER.fullmatch(expected):
        return False
    if _INTEGER.fullmatch(got) and _INTEGER.fullmatch(expected):
        return Decimal(got) == Decimal(expected)
    return (
        abs(float(got) - float(expected)) < _ALPHACODE_TOLERANCE
    )  # not where both are beyond the doubles: nan


def numbers_close(got: str, expected: str, *, relative: float, absolute: float) -> bool:
    """Whether two tokens are numbers within a tolerance: absolute, or relative to the expected one.

    Two integers have to be equal, and an infinity is close to itself alone.
    """
    ours, theirs = _number(got), _number(expected)
    if ours is None or theirs is None:
        return False
    if not ours.is_finite() or not theirs.is_finite():
        return ours == theirs or (ours.is_nan() and theirs.is_nan())
    if _INTEGER.fullmatch(got) and _INTEGER.fullmatch(expected):
        return ours == theirs
    far = _ARITHMETIC.abs(_ARITHMETIC.subtract(ours, theirs))
    allowed = _ARITHMETIC.multiply(Decimal(repr(relative)), _ARITHMETIC.abs(theirs))
    return far <= max(Decimal(repr(absolute)), allowed)


def _number(token: str) -> Decimal | None:
    """The number that a token is, exactly; None if it is none, or has an exponent of 18 digits."""
    if _NUMBER.fullmatch(token):
        try:
            return Decimal(token)
        except InvalidOperation:
            return None
    if found := _INFINITY.fullmatch(token):
        return Decimal(f"{found[1]}inf")
    return Decimal("nan") if token.lower() == "nan" else None


def _alphacode_tokens(text: str) -> list[str]:
    lower = text.encode("utf-8", "surrogatepass").lower()  # of ASCII alone, as there
    spaced = lower.translate(_ALPHACODE_SPACES).decode("utf-8", "surrogatepass")
    return [token for token in spaced.split(" ") if token]
