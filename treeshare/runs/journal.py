"""The journal: one JSON line per finished completion, appended, never rewritten.

A line is written by one ``write`` call to a file opened for appending, so ``kill -9`` loses nothing that was
handed over: at worst the last line is torn, and is cut away when the run is resumed. ``fsync`` runs at most
every half second and at the end: a power cut costs at most that half second.
"""

from __future__ import annotations

import json
import math
import os
import time
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from treeshare.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FSYNC_INTERVAL_S = 0.5


class Record(BaseModel):
    """One finished completion.

    Attributes:
        task_id: Its problem.
        completion_index: Which of the problem's completions.
        completion: Its text, cut at the stop string.
        token_ids: Everything generated.
        finish_reason: ``stop`` or ``length``.
        stop_reason: The stop string or stop token id, or None.
        cumulative_logprob: Natural log of the model's probability, before temperature.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task_id: str
    completion_index: NonNegativeInt
    completion: str
    token_ids: list[NonNegativeInt]
    finish_reason: str
    stop_reason: int | str | None = None
    cumulative_logprob: float

    @property
    def key(self) -> tuple[str, int]:
        """What makes it one of a kind in a run."""
        return self.task_id, self.completion_index

    def line(self) -> bytes:
        """Its line, newline included; the same record always gives the same bytes.

        Raises:
            DataError: If the log-probability is not finite.
        """
        if not math.isfinite(self.cumulative_logprob):
            raise DataError(
                f"{self.task_id}: got cumulative_logprob {self.cumulative_logprob}, expected a number"
            )
        text = json.dumps(self.model_dump(), ensure_ascii=False, separators=(", ", ": "))
        try:
            return text.encode() + b"\n"
        except UnicodeEncodeError:  # a lone surrogate
            return json.dumps(self.model_dump(), separators=(", ", ": ")).encode() + b"\n"


def read_records(path: Path) -> tuple[list[Record], int]:
    """Read a journal; a torn last line is passed over.

    Returns:
        The records, and the number of bytes that their lines take.

    Raises:
        DataError: If the file cannot be read, or a line before the last is not a record or comes twice.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"journal: cannot read {path}: {error.strerror}") from error
    records: list[Record] = []
    seen: dict[tuple[str, int], int] = {}
    size = 0
    for number, line in _lines(content):
        is_last = size + len(line) == len(content)
        try:
            if not line.endswith(b"\n"):
                break
            record = Record.model_validate_json(line)
        except ValidationError as error:
            if is_last:
                break
            where = f"{path}, line {number}"
            raise DataError(
                f"journal: {where}: {error.errors()[0]['msg']}; mend or remove the line"
            ) from error
        if record.key in seen:
            first = seen[record.key]
            raise DataError(
                f"journal: {path}, line {number}: {record.task_id} completion {record.completion_index} "
                f"stands in line {first} too; remove one"
            )
        seen[record.key] = number
        records.append(record)
        size += len(line)
    return records, size


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers and newlines; split at newlines only."""
    start, number = 0, 1
    while start < len(content):
        end = content.find(b"\n", start) + 1 or len(content)
        yield number, content[start:end]
        start, number = end, number + 1


class Journal:
    """Appends records to a file.

    Args:
        path: Made if missing. A torn last line is cut away.

    Attributes:
        records: What it held when it was opened.
        num_torn_bytes: Length of the torn line that was cut away.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DataError(f"journal: cannot write {path}: {error.strerror}") from error
        try:
            self.records, self._size = read_records(path)
            self.num_torn_bytes = os.fstat(self._descriptor).st_size - self._size
            if self.num_torn_bytes:
                os.ftruncate(self._descriptor, self._size)
                os.fsync(self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._synced_at = time.monotonic()

    def append(self, record: Record) -> None:
        """Write a record; when this returns, no end of the process can lose it.

        Raises:
            DataError: If the disk is full or fails; the file holds whole lines only, and the run can be
                resumed.
        """
        line = record.line()
        written = 0
        try:
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            self._size += written
            if time.monotonic() - self._synced_at > FSYNC_INTERVAL_S:
                self._sync()
        except BaseException as error:
            if written != len(line):
                os.ftruncate(self._descriptor, self._size)
            if isinstance(error, OSError):
                raise DataError(
                    f"journal: cannot write {self.path}: {error.strerror}; free space and resume"
                ) from error
            raise

    def close(self) -> None:
        """Make everything durable and close."""
        try:
            self._sync()
        finally:
            os.close(self._descriptor)

    def _sync(self) -> None:
        os.fsync(self._descriptor)
        self._synced_at = time.monotonic()
