"""Records of a file that is too large for memory: read one by one, and again when they are needed."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from treeshare.errors import DataError, one_line
from treeshare.files import opened
from treeshare.tasks.reading import parse_record, read_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pydantic import BaseModel

Fields = TypeVar("Fields", bound="BaseModel")
Kept = TypeVar("Kept")

MAX_LINE_BYTES = 1 << 30
"""A longer line is no record."""


@dataclass(frozen=True, kw_only=True)
class StoredLine:
    """A line of a file. As text it is its content's digest: where it lies does not matter to what it says.

    Attributes:
        path: The file.
        start: Where the line begins.
        size: Its bytes.
        sha256: Of its bytes.
        content: The bytes themselves, where they cannot be had from the file again.
    """

    path: Path
    start: int
    size: int
    sha256: str
    content: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        return self.sha256

    def read(self) -> bytes:
        """Its bytes, as they were.

        Raises:
            DataError: If the file has changed, or cannot be read.
        """
        if self.content:
            return self.content
        with opened(self.path, "data") as file:
            file.seek(self.start)
            content = file.read(self.size)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise DataError(f"data: {one_line(self.path)} has changed since it was read")
        return content


def stored_records(path: Path, kind: type[Fields]) -> Iterator[tuple[StoredLine, Fields]]:
    """The records of a file, each with the line to read it from again; in memory there is one at a time.

    A file that is gzipped, or one JSON list, is read whole, as by ``read_records``.

    Raises:
        DataError: As ``read_records``.
    """
    with opened(path, "data") as file:
        begin = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        if begin[:2] == b"\x1f\x8b" or begin[:1] == b"[":
            for record in read_records(path, kind):
                content = record.model_dump_json().encode()
                digest = hashlib.sha256(content).hexdigest()
                yield (
                    StoredLine(path=path, start=0, size=len(content), sha256=digest, content=content),
                    record,
                )
            return
        file.seek(0)
        start = number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES:
                raise DataError(f"data: {path}, line {number}: longer than {MAX_LINE_BYTES} bytes")
            text = line.removeprefix(b"\xef\xbb\xbf") if not start else line
            if text.strip():
                digest = hashlib.sha256(line).hexdigest()
                stored = StoredLine(path=path, start=start, size=len(line), sha256=digest)
                yield stored, parse_record(text, kind, f"{path}, line {number}")
            start += len(line)


class Recent(Generic[Kept]):
    """The last few things made from stored lines: completions of one problem come together.

    Args:
        make: Makes one from a line's bytes.
        size: How many are kept.
    """

    def __init__(self, make: Callable[[bytes], Kept], size: int = 8) -> None:
        self._make, self._size = make, size
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = Lock()

    def get(self, stored: StoredLine) -> Kept:
        """What is made from a line. Safe to call from several threads."""
        with self._lock:
            if stored.sha256 not in self._kept:
                self._kept[stored.sha256] = self._make(stored.read())
            self._kept.move_to_end(stored.sha256)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
            return self._kept[stored.sha256]
