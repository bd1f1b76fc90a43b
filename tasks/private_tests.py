"""LiveCodeBench's tests as the hub keeps them: JSON text, or base64 of zlib of a pickle of that text.

The reference unpickles the latter, which can run any code. Here the one text in it is taken out of the list
of the pickle's operations, which is only parsed: everything else is refused.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import pickletools
import re
import zlib
from dataclasses import dataclass
from typing import Any

from treeshare.errors import DataError

MAX_TEXT_BYTES = 256 << 20
"""Of a problem's tests as JSON text. The largest of the real data have tens of MB."""

MAX_RATIO = 200
MIN_TEXT_BYTES = 16 << 20
"""Tests may unpack to this much, or to ``MAX_RATIO`` times their packed size, whichever is more."""

_PLAIN = frozenset({"PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
"""What stands around one text: no effect but to remember it."""
_TEXT = frozenset({"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"})
_MAX_OPERATIONS = 16
"""Of a pickle: one of a text has at most five."""

_SPACES = re.compile(r"[ \t\r\n]*+")
_KINDS = ("stdin", "functional")


@dataclass(frozen=True, kw_only=True)
class IoTest:
    """A test: what goes in, what comes out, and how.

    Attributes:
        given: Standard input; for a function one JSON value a line, a line for each argument.
        expected: What is printed, or a JSON value.
        is_call: Whether it calls a function.
    """

    given: str
    expected: str
    is_call: bool


def decode_tests(text: str, where: str) -> list[IoTest]:
    """The tests in a value of ``public_test_cases`` or ``private_test_cases``; none for an empty text.

    Raises:
        DataError: If it is in neither form, larger than the limits, or anything but a list of tests.
    """
    content = text.strip()
    if not content:
        return []
    return _tests(content if content.startswith("[") else _unpacked(content, where), where)


def _unpacked(text: str, where: str) -> str:
    """The text inside the encoded form."""
    try:
        packed = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: neither JSON nor base64") from error
    limit = min(MAX_TEXT_BYTES, max(MIN_TEXT_BYTES, MAX_RATIO * len(packed)))
    reader = zlib.decompressobj()
    try:
        content = reader.decompress(packed, limit)
    except zlib.error as error:
        raise DataError(f"{where}: not zlib inside base64: {error}") from error
    if reader.unconsumed_tail:
        raise DataError(
            f"{where}: {len(packed)} bytes unpack to more than {limit}, the maximum; not real tests"
        )
    if not reader.eof or reader.unused_data:
        raise DataError(f"{where}: zlib data that is cut short, or followed by something else")
    return _pickled_text(content, where)


def _pickled_text(content: bytes, where: str) -> str:
    """The one text that a pickle holds, by its operations, none of which is carried out."""
    try:
        operations = list(itertools.islice(pickletools.genops(content), _MAX_OPERATIONS))
    except (ValueError, OverflowError, MemoryError, IndexError) as error:
        raise DataError(f"{where}: a pickle that cannot be read: {_short(error)}") from error
    others = [kind.name for kind, _, _ in operations if kind.name not in _PLAIN | _TEXT | {"STOP"}]
    if others:
        raise DataError(
            f"{where}: a pickle with {others[0]}, expected one of a single text; it is not unpickled"
        )
    texts = [argument for kind, argument, _ in operations if kind.name in _TEXT]
    last, _, place = operations[-1]
    if len(texts) != 1 or last.name != "STOP" or place != len(content) - 1:
        raise DataError(f"{where}: a pickle that is not a single text, or that has more data after its end")
    return str(texts[0])


def _tests(text: str, where: str) -> list[IoTest]:
    """A list of tests, each looked at before the next is read: memory is not spent on what is none."""
    text = text.strip()
    if not text.startswith("["):
        raise DataError(f"{where}: not a JSON list of tests")
    found: list[IoTest] = []
    decoder, place = json.JSONDecoder(), _behind_spaces(text, 1)
    is_open = text[place : place + 1] != "]"
    while is_open:
        here = f"{where}, test {len(found) + 1}"
        try:
            item, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError, MemoryError) as error:
            raise DataError(f"{here}: not JSON: {_short(error)}") from error
        found.append(_test(item, here))
        place = _behind_spaces(text, place)
        is_open = text[place : place + 1] == ","
        place = _behind_spaces(text, place + is_open)
    if text[place:] != "]":
        raise DataError(f"{where}: a list of tests that is cut short, or followed by something else")
    return found


def _behind_spaces(text: str, place: int) -> int:
    found = _SPACES.match(text, place)
    assert found is not None, "the pattern also fits nothing"
    return found.end()


def _test(item: Any, where: str) -> IoTest:  # noqa: ANN401
    found = item if isinstance(item, dict) else {}
    given, expected, kind = found.get("input"), found.get("output"), found.get("testtype")
    if not (isinstance(given, str) and isinstance(expected, str) and isinstance(kind, str)):
        raise DataError(f"{where}: expected an object with input, output and testtype, all three text")
    if kind not in _KINDS:
        raise DataError(f"{where}: testtype {kind[:40]!r}, expected {' or '.join(_KINDS)}")
    return IoTest(given=given, expected=expected, is_call=kind == "functional")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def encode_tests(tests: list[dict[str, str]]) -> str:
    """The encoded form of tests, as the hub has it; for files of one's own."""
    text = json.dumps(tests).encode()
    is_short = len(text) < 256
    begin = b"\x8c" + len(text).to_bytes(1) if is_short else b"X" + len(text).to_bytes(4, "little")
    frame = begin + text + b"\x94."
    content = b"\x80\x04\x95" + len(frame).to_bytes(8, "little") + frame
    return base64.b64encode(zlib.compress(content)).decode()
