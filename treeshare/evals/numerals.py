"""Integers of any length as decimal digits, both ways: Python refuses above 4,300 and takes quadratic time.

Python's own limit is a setting of the whole process, not ours to change. This is for data that a user has
chosen; what a program returns is hexadecimal (``values``), what it prints stays text (``outputs``).
"""

from __future__ import annotations

import json
from typing import Any

_DIGITS = 600
"""Converted at once: below the lowest limit that Python can be set to."""


def int_of_digits(text: str) -> int:
    """The integer that decimal digits, perhaps with a sign, stand for."""
    if text.startswith(("-", "+")):
        number = _int_of(text[1:])
        return -number if text[0] == "-" else number
    return _int_of(text)


def digits_of(number: int) -> str:
    """An integer's decimal digits: ``str`` without its limit."""
    sign, number = ("-", -number) if number < 0 else ("", number)
    powers = [10**_DIGITS]
    while powers[-1] <= number:
        powers.append(powers[-1] ** 2)
    return sign + (_digits_of(number, powers).lstrip("0") or "0")


def loads(text: str | bytes) -> Any:  # noqa: ANN401
    """``json.loads``, with integers of any length.

    Raises:
        ValueError: If it is not JSON.
        RecursionError: If it is nested too deep.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer beyond Python's limit
        return json.loads(text, parse_int=int_of_digits)


def dumps(value: Any, **options: Any) -> str:  # noqa: ANN401
    """``json.dumps``; with integers of any length, for those that read it only to compare it.

    Without long integers it is the same text. One of them is written as ``{"$int": "0x..."}``.
    """
    try:
        return json.dumps(value, **options)
    except ValueError:
        return json.dumps(_hexadecimal(value), **options)


def _int_of(digits: str) -> int:
    if len(digits) <= _DIGITS:
        return int(digits)
    half = len(digits) // 2
    power: int = 10**half
    return _int_of(digits[:-half]) * power + _int_of(digits[-half:])


def _digits_of(number: int, powers: list[int]) -> str:
    """All digits of a number below the last power, with zeros in front."""
    if len(powers) == 1:
        return f"{number:0{_DIGITS}d}"
    high, low = divmod(number, powers[-2])
    return _digits_of(high, powers[:-1]) + _digits_of(low, powers[:-1])


def _hexadecimal(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _hexadecimal(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hexadecimal(inner) for inner in value]
    return {"$int": hex(value)} if isinstance(value, int) and value.bit_length() > 2048 else value
