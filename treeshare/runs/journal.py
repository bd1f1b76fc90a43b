"""The journal: one JSON line per finished completion, only ever appended.

Each line is written by a single ``write`` call to a file opened for appending (by more calls only if the
system writes less than asked). So ``kill -9`` loses no line that was written; at worst the last line is
incomplete ("torn"), and is removed when the run is resumed. ``fsync`` runs on closing and, on a thread, half
a second after a write: a power failure loses at most the lines of that half second and of the ``fsync``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from treeshare.errors import DataError, RunLockedError, one_line
from treeshare.files import open_regular, read_lines, sync_folder
from treeshare.runs.record import ENDED_KEY, Record, TornLineError
from treeshare.runs.signals import SignalsHeld

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FSYNC_INTERVAL_S = 0.5


class Keyed(Protocol):
    """A record of a ``LineFile``."""

    @property
    def key(self) -> Any:  # noqa: ANN401
        """Hashable; no two records of a file have the same key."""

    @property
    def name(self) -> str:
        """How messages name the record."""

    def line(self) -> bytes:
        """The record's line, newline included."""


K = TypeVar("K", bound=Keyed)


def iter_records(path: Path) -> Iterator[tuple[Record, int]]:
    """Read a journal's records; see ``iter_lines``."""
    return iter_lines(path, Record.parse)


def iter_lines(path: Path, parse: Callable[[bytes], K]) -> Iterator[tuple[K, int]]:
    r"""Read a file record by record; skips a torn last line. Allowed while another process appends.

    The last line is torn if it has no newline or is not JSON. Only ``\n`` ends a line.

    Args:
        path: The file.
        parse: Reads a line; raises ``TornLineError`` if it is not JSON, ``DataError`` for other faults.

    Yields:
        A record, and the offset at which its line ends.

    Raises:
        DataError: If the file cannot be read, a line is not a record, or two records have the same key. The
            message gives the line number.
    """
    seen: dict[Any, int] = {}
    torn: DataError | None = None
    end = 0
    for number, line in enumerate(read_lines(path, "journal"), 1):
        if torn is not None:
            raise torn
        where = f"journal: {one_line(path)}, line {number}"
        if not line.endswith(b"\n"):
            return
        end += len(line)
        try:
            record = parse(line)
        except TornLineError as error:
            torn = DataError(f"{where}: {error}; correct or remove the line")
            continue
        except DataError as error:
            raise DataError(f"{where}: {error}; correct or remove the line") from error
        if record.key in seen:
            raise DataError(
                f"{where}: {record.name} is already in line {seen[record.key]}; remove one of the two lines"
            )
        seen[record.key] = number
        yield record, end


def read_records(path: Path) -> tuple[list[Record], int]:
    """Read all records of a journal; see ``iter_records``.

    Returns:
        The records, and the number of bytes of their lines.
    """
    records, size = [], 0
    for record, end in iter_records(path):
        records.append(record)
        size = end
    return records, size


class LineFile(Generic[K]):
    """A file of records open for appending, by a single process at a time.

    Args:
        path: The file; made if missing, refused if it is a symbolic link. A torn last line is removed.
        parse: As for ``iter_lines``.
        fsync_interval_s: Maximum time between a write and the beginning of its ``fsync``; 0 makes each record
            durable before ``append`` returns.

    Attributes:
        keys: The keys of all records.
        num_torn_bytes: Bytes of the torn line that was removed.

    Raises:
        DataError: If the file cannot be read or written, or has a broken line.
        RunLockedError: If another process is writing to it.
    """

    def __init__(
        self, path: Path, parse: Callable[[bytes], K], fsync_interval_s: float = FSYNC_INTERVAL_S
    ) -> None:
        self.path = path
        self.keys: set[Any] = set()
        self._parse = parse
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
        for record, end in iter_lines(self.path, self._parse):
            self._note(record)
            self._size = end
        num_torn_bytes = os.fstat(self._descriptor).st_size - self._size
        if num_torn_bytes:
            os.ftruncate(self._descriptor, self._size)
        os.fsync(self._descriptor)
        sync_folder(self.path.parent)
        return num_torn_bytes

    def append(self, record: K) -> None:
        """Write a record; once this has returned, the record survives any end of the process.

        Python's signal handlers, such as that of Ctrl-C, run before or after the write, not during it. If
        this raises, the run can be resumed: the file has complete lines, with at most a torn one after them.

        Raises:
            DataError: If the disk is full or fails, or the record cannot be written as JSON.
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

    def _note(self, record: K) -> None:
        self.keys.add(record.key)

    def records(self) -> Iterator[K]:
        """All records, read from the file."""
        return (record for record, _ in iter_lines(self.path, self._parse))

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
        """Remove what a failed append left behind."""
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
                except RuntimeError:  # no thread can be started: sync on this one
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
        """Make all writes durable. After a failure they may be lost, and further records are refused."""
        with self._sync_lock:
            if self._descriptor < 0:
                return
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                self._failure = self._explain(error)

    def _explain(self, error: OSError) -> str:
        return f"journal: cannot write {one_line(self.path)}: {error.strerror}; free disk space and resume"


class Journal(LineFile[Record]):
    """The completions of a run; see ``LineFile``.

    Args:
        path: As for ``LineFile``.
        fsync_interval_s: As for ``LineFile``.

    Attributes:
        keys: ``(task_id, completion_index)`` of all records.
        ended: Task ids of the problems that were ended early (``ended_problem``).
    """

    def __init__(self, path: Path, fsync_interval_s: float = FSYNC_INTERVAL_S) -> None:
        self.ended: set[str] = set()
        super().__init__(path, Record.parse, fsync_interval_s)

    def _note(self, record: Record) -> None:
        super()._note(record)
        if (record.model_extra or {}).get(ENDED_KEY):
            self.ended.add(record.task_id)
