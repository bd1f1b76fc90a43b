"""Values as JSON text, and back: what a function in the sandbox is given, and what it returns.

The sandbox runs this very file, beside the candidate: standard library only, imported where it is needed.
What is decoded may have been written by a program that nobody trusts: it is parsed, never executed, in linear
time and with bounded depth.

JSON has None, booleans, integers, floats, text, lists, and dictionaries whose keys are text. Everything else
is an object with one key that names its type::

    {"$int": "0x1f"}       an integer of many digits: as decimals, reading and writing it is quadratic
    {"$tuple": [1, 2]}     also "$set", "$frozenset"
    {"$dict": [[1, 2]]}    pairs, where not all keys are text
    {"$bytes": "00ff"}  {"$complex": [1.0, 2.0]}  {"$fraction": [1, 3]}  {"$decimal": "0.10"}
    {"$range": [0, 3, 1]}  {"$array": [[1, 2]]}, an array of numpy

A value is taken for what its built-in base holds: a list of a class of its own is a list, an enumeration's
integer an integer. What such a class says of itself, its ``__eq__`` above all, is never asked.
"""
# ruff: noqa: ANN401  # any value at all

from __future__ import annotations

import sys

TYPE_CHECKING = False  # the module typing takes milliseconds
if TYPE_CHECKING:
    from typing import Any

MAX_DEPTH = 300
"""Levels of nested JSON. Also the standard parser's recursion, and the C stack, stay far away."""

_LONG = 1 << 2048
"""From here on an integer is hexadecimal. Below it has at most 617 digits, within any limit of Python's."""
_SHORT_DIGITS = 640
_LONG_RATIO_BITS = 1 << 16
"""Of numerator and denominator: a fraction is reduced in quadratic time."""
_LONG_DECIMAL = 20_000
_SAME_HASH = 64
"""Keys or members with one hash; more are made to take quadratic time."""

_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class NoValueError(ValueError):
    """What a function returned is no value; the message is a noun: ``a generator``."""


class Array:
    """An array of numpy.

    Attributes:
        items: Its elements, as nested lists; one element alone if it has no dimension.
    """

    __slots__ = ("items",)

    def __init__(self, items: Any) -> None:
        self.items = items


def encode(value: Any) -> str:
    """A value as JSON text, ASCII only.

    Raises:
        NoValueError: If it is none, or nested too deep.
    """
    import json

    return json.dumps(_plain(value, 0))


def decode(text: str) -> Any:
    """The value that ``encode`` has written, made of built-in types and few others.

    Raises:
        ValueError: If it is none: malformed, nested deeper than ``MAX_DEPTH``, or made to be slow.
    """
    import json

    if _is_deep(text):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    hooks: dict[str, Any] = {"parse_int": _short_int} if len(text) > _SHORT_DIGITS else {}
    try:
        return json.loads(text, object_hook=_tagged, **hooks)
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"cannot be read: {type(error).__name__}") from None


def _plain(value: Any, depth: int) -> Any:
    """What the JSON encoder takes."""
    kind = type(value)
    if value is None or kind is bool or kind is float or kind is str:
        return value
    if kind is int:
        return _integer(value)
    if depth >= MAX_DEPTH:
        raise NoValueError(f"a value nested deeper than {MAX_DEPTH} levels")
    if issubclass(kind, list):
        return _items(list.__getitem__(value, slice(None)), depth + 1)
    if issubclass(kind, dict):
        return _pairs(list(dict.items(value)), depth)
    if issubclass(kind, tuple):
        return {"$tuple": _items(list(tuple.__iter__(value)), depth + 2)}
    for base, make in _BASES:
        if issubclass(kind, base):
            return make(value, depth)
    return _from_library(value, depth)


def _items(values: list[Any], depth: int) -> list[Any]:
    kinds = set(map(type, values))
    if kinds <= {str, bool, float, type(None)}:
        return values
    if kinds == {int} and min(values) > -_LONG and max(values) < _LONG:
        return values
    found = []
    for value in values:  # no comprehension: it would be another frame a level
        found.append(_plain(value, depth))
    return found


def _pairs(pairs: list[tuple[Any, Any]], depth: int) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if set(map(type, keys)) <= {str} and not (len(keys) == 1 and keys[0].startswith("$")):
        return dict(zip(keys, _items([value for _, value in pairs], depth + 1), strict=True))
    return {"$dict": [_items(list(pair), depth + 3) for pair in pairs]}


def _integer(value: int) -> Any:
    return value if -_LONG < value < _LONG else {"$int": hex(value)}


def _ratio(numerator: int, denominator: int) -> Any:
    if max(numerator.bit_length(), denominator.bit_length()) > _LONG_RATIO_BITS:
        raise NoValueError(f"a fraction of more than {_LONG_RATIO_BITS} bits")
    return {"$fraction": [_integer(numerator), _integer(denominator)]}


def _complex(value: complex, depth: int) -> Any:
    return {"$complex": [complex.real.__get__(value), complex.imag.__get__(value)]}


_BASES = (
    (int, lambda value, depth: _integer(int.__index__(value))),
    (float, lambda value, depth: float.__float__(value)),
    (str, lambda value, depth: str.__str__(value)),
    (bytes, lambda value, depth: {"$bytes": bytes.hex(value)}),
    (bytearray, lambda value, depth: {"$bytes": bytearray.hex(value)}),
    (complex, _complex),
    (set, lambda value, depth: {"$set": _items(list(set.__iter__(value)), depth + 2)}),
    (frozenset, lambda value, depth: {"$frozenset": _items(list(frozenset.__iter__(value)), depth + 2)}),
    (range, lambda value, depth: {"$range": list(map(_integer, (value.start, value.stop, value.step)))}),
)
"""Built-in types, and how the content of a value of theirs, or of a class of its own below, is written."""


def _from_library(value: Any, depth: int) -> Any:
    """A number or an array of a library's that the program has imported."""
    kind = type(value)
    numpy, decimal = sys.modules.get("numpy"), sys.modules.get("decimal")
    if numpy is not None and issubclass(kind, numpy.bool_):
        return bool(value)
    if numpy is not None and issubclass(kind, numpy.ndarray):
        return {"$array": _plain(numpy.ndarray.tolist(value), depth + 1)}
    if decimal is not None and issubclass(kind, decimal.Decimal):
        text = decimal.Decimal.__str__(value)
        if len(text) > _LONG_DECIMAL:
            raise NoValueError(f"a decimal number of more than {_LONG_DECIMAL} digits")
        return {"$decimal": text}
    if kind.__module__ == "collections" and kind.__name__ in ("UserDict", "UserList", "UserString"):
        return _plain(value.data, depth + 1)
    return _number(value, depth)


def _number(value: Any, depth: int) -> Any:
    """A number of a library's, as exact as it can be had."""
    kind, numbers = type(value), sys.modules.get("numbers")
    if numbers is None or not issubclass(kind, numbers.Complex):
        name = type.__dict__["__name__"].__get__(kind)
        raise NoValueError(f"{'an' if name[:1] in tuple('AEIOUaeiou') else 'a'} {name[:60]}")
    if issubclass(kind, numbers.Integral):
        return _integer(int(value))
    if issubclass(kind, numbers.Rational):
        return _ratio(int(value.numerator), int(value.denominator))
    if not issubclass(kind, numbers.Real):
        return _complex(complex(value), depth)
    rounded = float(value)
    if rounded - rounded != 0 or not hasattr(value, "as_integer_ratio"):  # infinite, or no way to be exact
        return rounded
    numerator, denominator = map(int, value.as_integer_ratio())
    return (
        rounded if rounded.as_integer_ratio() == (numerator, denominator) else _ratio(numerator, denominator)
    )


def _is_deep(text: str) -> bool:
    """Whether brackets outside of text are nested deeper than ``MAX_DEPTH``."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    content = text.encode("utf-8", "surrogatepass").replace(b"\\\\", b"").replace(b'\\"', b"")
    depth = 0
    for bracket in b"".join(content.split(b'"')[::2]).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _tagged(content: dict[str, Any]) -> Any:
    """The value that an Any stands for."""
    if len(content) != 1:
        return content
    [(tag, inner)] = content.items()
    read = _READERS.get(tag)
    return content if read is None else read(inner)


def _short_int(digits: str) -> int:
    if len(digits) > _SHORT_DIGITS:
        raise ValueError("an integer of many digits, expected it hexadecimal")
    return int(digits)


def _listed(content: Any) -> list[Any]:
    if type(content) is not list:
        raise TypeError("expected a list")
    return content


def _hashed(content: Any) -> list[Any]:
    """Members of a set, or keys, unless they are made to collide: their hashes are no secret."""
    members = _listed(content)
    counts: dict[int, int] = {}
    for found in map(hash, members):
        counts[found] = counts.get(found, 0) + 1
    if counts and max(counts.values()) > _SAME_HASH:
        raise ValueError("too many members of one hash")
    return members


def _dictionary(content: Any) -> dict[Any, Any]:
    pairs = [_listed(pair) for pair in _listed(content)]
    keys = _hashed([pair[0] for pair in pairs if len(pair) == 2])
    return dict(zip(keys, [pair[1] for pair in pairs if len(pair) == 2], strict=True))


def _integers(content: Any, count: int) -> list[int]:
    found = _listed(content)
    if len(found) != count or not all(type(number) is int for number in found):
        raise TypeError(f"expected {count} integers")
    return found


def _fraction(content: Any) -> Any:
    from fractions import Fraction

    numerator, denominator = _integers(content, 2)
    if max(numerator.bit_length(), denominator.bit_length()) > _LONG_RATIO_BITS:
        raise ValueError("a long fraction")
    return Fraction(numerator, denominator)


def _decimal(content: Any) -> Any:
    from decimal import Decimal

    if type(content) is not str or len(content) > _LONG_DECIMAL:
        raise TypeError("expected the text of a decimal number")
    return Decimal(content)


_READERS = {
    "$int": lambda content: int(content, 16),
    "$tuple": lambda content: tuple(_listed(content)),
    "$set": lambda content: set(_hashed(content)),
    "$frozenset": lambda content: frozenset(_hashed(content)),
    "$dict": _dictionary,
    "$bytes": lambda content: bytes.fromhex(content),
    "$complex": lambda content: complex(*map(float, _listed(content))),
    "$fraction": _fraction,
    "$decimal": _decimal,
    "$range": lambda content: range(*_integers(content, 3)),
    "$array": Array,
}
