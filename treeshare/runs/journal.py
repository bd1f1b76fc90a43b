"""The journal: one JSON line per finished completion, appended, never rewritten.

A line goes to a file opened for appending, by one ``write`` call (more only where the system writes less
than asked). So ``kill -9`` loses nothing that was handed over: at worst the last line is torn, and is cut
away when the run is resumed. ``fsync`` runs at the end, and half a second after a write, on a thread of its
own: a power cut costs at most that half second and what ``fsync`` itself takes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from typing import TYPE_CHECKING

from treeshare.errors import DataError, RunLockedError, one_line
from treeshare.runs.files import open_regular, sync_folder
from treeshare.runs.record import ENDED_KEY, MAX_LINE_BYTES, Record, TornLineError
from treeshare.runs.signals import SignalsHeld

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FSYNC_INTERVAL_S = 0.5


def iter_records(path: Path) -> Iterator[tuple[Record, int]]:
    r"""Read a journal line by line; a torn last line is passed over. Safe while another process appends.

    A last line is torn if it has no newline or is not JSON. Lines end at ``\n`` only.

    Yields:
        A record, and the offset at which its line ends.

    Raises:
        DataError: If the file cannot be read, or a line is not a record or comes twice; with its number.
    """
    seen: dict[tuple[str, int], int] = {}
    torn: DataError | None = None
    end = 0
    for number, line in enumerate(_lines(path), 1):
        if torn is not None:
            raise torn
        where = f"journal: {one_line(path)}, line {number}"
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{where}: longer than {MAX_LINE_BYTES} bytes, this is not a journal")
        if not line.endswith(b"\n"):
            return
        end += len(line)
        try:
            record = Record.parse(line)
        except TornLineError as error:
            torn = DataError(f"{where}: {error}; mend or remove the line")
            continue
        except DataError as error:
            raise DataError(f"{where}: {error}; mend or remove the line") from error
        if record.key in seen:
            raise DataError(
                f"{where}: {one_line(record.task_id)} completion {record.completion_index} stands in line "
                f"{seen[record.key]} too; remove one"
            )
        seen[record.key] = number
        yield record, end


def read_records(path: Path) -> tuple[list[Record], int]:
    """Read a journal whole; see ``iter_records``.

    Returns:
        The records, and the number of bytes that their lines take.
    """
    records, size = [], 0
    for record, end in iter_records(path):
        records.append(record)
        size = end
    return records, size


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open(open_regular(path, os.O_RDONLY), "rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                yield line
    except OSError as error:
        raise DataError(f"journal: cannot read {one_line(path)}: {error.strerror}") from error


class Journal:
    """Appends records to a file; the only writer of that file.

    Args:
        path: Made if missing; not a symbolic link. A torn last line is cut away.
        fsync_interval_s: Longest time between a write and the beginning of its ``fsync``; 0 makes each
            record durable before ``append`` returns.

    Attributes:
        keys: ``(task_id, completion_index)`` of what it holds.
        ended: Task ids of problems that a completion ended.
        num_torn_bytes: Length of the torn line that was cut away.

    Raises:
        DataError: If it cannot be read or written, or holds a broken line.
        RunLockedError: If another process is writing to it.
    """

    def __init__(self, path: Path, fsync_interval_s: float = FSYNC_INTERVAL_S) -> None:
        self.path = path
        self.keys: set[tuple[str, int]] = set()
        self.ended: set[str] = set()
        self._fsync_interval_s = fsync_interval_s
        self._size = 0
        self._is_whole = True
        self._failure: str | None = None
        self._timer: threading.Timer | None = None
        self._timer_lock = threading.Lock()
        self._sync_lock = threading.Lock()
        try:
            self._descriptor = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW)
        except OSError as error:
            raise DataError(f"journal: cannot write {one_line(path)}: {error.strerror}") from error
        try:
            self.num_torn_bytes = self._resume()
        except BaseException as error:
            os.close(self._descriptor)
            if isinstance(error, BlockingIOError):
                raise RunLockedError(
                    f"journal: {one_line(path)} is being written by another process"
                ) from error
            if isinstance(error, OSError):
                raise DataError(f"journal: cannot write {one_line(path)}: {error.strerror}") from error
            raise

    def _resume(self) -> int:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for record, end in iter_records(self.path):
            self._note(record)
            self._size = end
        num_torn_bytes = os.fstat(self._descriptor).st_size - self._size
        if num_torn_bytes:
            os.ftruncate(self._descriptor, self._size)
        os.fsync(self._descriptor)
        sync_folder(self.path.parent)
        return num_torn_bytes

    def append(self, record: Record) -> None:
        """Write a record; when this returns, no end of the process can lose it.

        Python's signal handlers, Ctrl-C first of all, run before or after, never between. If this raises,
        the file holds whole lines only and the run can be resumed.

        Raises:
            DataError: If the disk is full or fails, or the record cannot be expressed.
        """
        line = record.line()
        with SignalsHeld():
            if self._descriptor < 0:
                raise DataError(f"journal: {one_line(self.path)} is closed")
            if self._failure is not None:
                raise DataError(self._failure)
            assert record.key not in self.keys, "a completion is written once"
            try:
                self._cut()
                self._is_whole = False
                self._write(line)
                self._size += len(line)
                self._is_whole = True
                self._note(record)
            except OSError as error:
                self._try_to_cut()
                raise DataError(self._explain(error)) from error
            self._sync_soon()

    def _note(self, record: Record) -> None:
        self.keys.add(record.key)
        if (record.model_extra or {}).get(ENDED_KEY):
            self.ended.add(record.task_id)

    def records(self) -> Iterator[Record]:
        """What it holds, read from the file."""
        return (record for record, _ in iter_records(self.path))

    def close(self) -> None:
        """Make everything durable and close; a second call does nothing.

        Raises:
            DataError: If the disk fails.
        """
        if self._descriptor < 0:
            return
        with SignalsHeld():
            with self._timer_lock:
                if self._timer is not None:
                    self._timer.cancel()
            self._try_to_cut()
            self._sync()
            with self._sync_lock:
                os.close(self._descriptor)
                self._descriptor = -1
        if self._failure is not None:
            raise DataError(self._failure)

    def _write(self, line: bytes) -> None:
        written = os.write(self._descriptor, line)
        while written < len(line):
            written += os.write(self._descriptor, line[written:])

    def _cut(self) -> None:
        """Cut away what an append that failed left behind."""
        if not self._is_whole:
            os.ftruncate(self._descriptor, self._size)
            self._is_whole = True

    def _try_to_cut(self) -> None:
        with contextlib.suppress(OSError):  # the next append tries again, or the next opening cuts
            self._cut()

    def _sync_soon(self) -> None:
        if self._fsync_interval_s > 0:
            with self._timer_lock:
                if self._timer is not None:
                    return
                timer = threading.Timer(self._fsync_interval_s, self._sync_from_timer)
                timer.daemon = True
                try:
                    timer.start()
                except RuntimeError:  # no more threads: sync here
                    pass
                else:
                    self._timer = timer
                    return
        self._sync()
        if self._failure is not None:
            raise DataError(self._failure)

    def _sync_from_timer(self) -> None:
        with self._timer_lock:
            self._timer = None
        self._sync()

    def _sync(self) -> None:
        """Make what was written durable; after a failure, when it may be lost, nothing more is taken."""
        with self._sync_lock:
            if self._descriptor < 0:
                return
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                self._failure = self._explain(error)

    def _explain(self, error: OSError) -> str:
        return f"journal: cannot write {one_line(self.path)}: {error.strerror}; free space and resume"
