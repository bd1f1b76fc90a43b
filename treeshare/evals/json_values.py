"""JSON values: what a returned value comes to, where it differs from a test's answer, and how it is shown."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from treeshare.evals.values import Array

if TYPE_CHECKING:
    from collections.abc import Callable

_SHOWN_CHARACTERS = 40
_SHOWN_BITS = 1000
_SHOWN_LEVELS = 4
_PLAIN = {str, bool, int, float, type(None)}
_LONGEST_DECIMAL = 5000
"""Digits of a decimal number's integer; making it takes quadratic time."""


class NoJsonValueError(ValueError):
    """A value that no test's answer, which is JSON, can equal; the message is a noun: ``a set``."""


class Rounded(float):
    """The float nearest to a number that no float equals: close to it, never equal to anything."""


def as_json(value: Any) -> Any:  # noqa: ANN401
    """The JSON value that a returned value equals: JSON has no tuples, and its keys are text.

    A tuple becomes a list; keys become text, as ``json.dumps`` makes them; a fraction, a decimal or complex
    number becomes the integer or float that equals it, or a ``Rounded`` one; an array of numpy with one
    element becomes its list (of a longer one numpy says that ``==`` has no single truth).

    Raises:
        NoJsonValueError: If there is none.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list or kind is tuple:
        return list(value) if set(map(type, value)) <= _PLAIN else [as_json(item) for item in value]
    if kind is dict:
        return {_key(key): as_json(inner) for key, inner in value.items()}
    if kind is Array:
        return as_json(_single(value))
    if kind is complex and value.imag == 0:
        return value.real
    if kind is Fraction or kind is Decimal:
        return _real(value)
    raise NoJsonValueError(f"a {kind.__name__}")


def value_difference(
    got: Any,  # noqa: ANN401
    expected: Any,  # noqa: ANN401
    match: Callable[[float, float], bool],
    *,
    bools_are_numbers: bool = False,
) -> str | None:
    """Where two nested JSON values differ, without recursion.

    Args:
        got: What was returned.
        expected: What should have been.
        match: Compares numbers.
        bools_are_numbers: Whether ``True`` is 1, as for Python's ``==``; otherwise it is itself alone.
    """
    left = [(got, expected)]
    while left:
        our, their = left.pop()
        if isinstance(our, bool) and isinstance(their, bool):
            same = our is their
        elif isinstance(our, (int, float)) and isinstance(their, (int, float)):
            is_odd = isinstance(our, bool) or isinstance(their, bool)
            same = match(our, their) if bools_are_numbers or not is_odd else False
        elif isinstance(our, (list, tuple)) and isinstance(their, (list, tuple)):
            same = len(our) == len(their)
            left += zip(our, their, strict=False)
        elif isinstance(our, dict) and isinstance(their, dict):
            same = our.keys() == their.keys()
            left += [(our[key], their[key]) for key in our.keys() & their.keys()]
        else:
            same = type(our) is type(their) and our == their
        if not same:
            return f"{shown(our)}, expected {shown(their)}"
    return None


def numbers_equal(got: float, expected: float) -> bool:
    """Python's ``==`` of numbers."""
    return not isinstance(got, Rounded) and got == expected


def shown(value: Any) -> str:  # noqa: ANN401
    """A value on one line, short, in time that does not grow with it."""
    if value is None:
        return "nothing"
    text = _text(value, 0)
    if not isinstance(value, (str, int, float)):
        text = f"a {type(value).__name__} {text}"
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _text(value: Any, level: int) -> str:  # noqa: ANN401
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return f"an integer of about {value.bit_length() * 0.30103:.0f} digits"
    if isinstance(value, (str, bytes)):
        return repr(value[: _SHOWN_CHARACTERS + 1])
    if value is None or isinstance(value, (int, float, complex)):
        return repr(value)
    if level >= _SHOWN_LEVELS:
        return "..."
    if isinstance(value, (list, tuple)):
        inner = ", ".join(_text(item, level + 1) for item in value[:_SHOWN_CHARACTERS])
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, dict):
        pairs = list(value.items())[:_SHOWN_CHARACTERS]
        return "{" + ", ".join(f"{_text(k, level + 1)}: {_text(v, level + 1)}" for k, v in pairs) + "}"
    return "..."


def _key(key: Any) -> str:  # noqa: ANN401
    """A dictionary's key as ``json.dumps`` writes it."""
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    if isinstance(key, int) and key.bit_length() <= 2048:
        return str(key)
    if isinstance(key, float):
        return repr(key)
    raise NoJsonValueError(f"a dictionary with a key of type {type(key).__name__}")


def _single(array: Array) -> Any:  # noqa: ANN401
    """An array's nested lists, if there is one element in them."""
    inner = array.items
    while isinstance(inner, list):
        if len(inner) != 1:
            raise NoJsonValueError(
                f"an array with other than one element, whose == is an array {shown(array.items)}"
            )
        inner = inner[0]
    return array.items


def _real(number: Fraction | Decimal) -> float:
    if isinstance(number, Decimal):
        if not number.is_finite():
            if number.is_snan():
                raise NoJsonValueError("a signalling nan")
            return float(number)
        if not number:
            return 0
        if abs(number.adjusted()) > _LONGEST_DECIMAL:
            raise NoJsonValueError("a decimal number of many digits")
    whole = int(number)
    if whole == number:
        return whole
    try:
        rounded = float(number)
    except OverflowError:
        raise NoJsonValueError("a fraction beyond the floats") from None
    return rounded if rounded == number else Rounded(rounded)
