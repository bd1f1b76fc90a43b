"""A run directory: its manifest, its journal, and a lock that admits one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Self

from treeshare.errors import DataError, RunLockedError, RunMismatchError, one_line
from treeshare.files import make_folders, open_regular
from treeshare.runs.journal import FSYNC_INTERVAL_S, Journal, read_records
from treeshare.runs.manifest import Manifest
from treeshare.runs.signals import SignalsHeld

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from treeshare.runs.record import Record

MANIFEST_NAME = "manifest.json"
JOURNAL_NAME = "samples.jsonl"
LOCK_NAME = ".lock"

_PARTIAL_MANIFEST = re.compile(rf"\.{re.escape(MANIFEST_NAME)}-[0-9a-f]{{8}}")


class RunDirectory:
    """A run open for writing; a context manager.

    If the directory holds a run with the same parameters, that run is resumed; a larger ``n`` extends it.
    With a smaller ``n`` the run keeps its own ``n``, and only the missing completions with an index below the
    smaller ``n`` are made.

    Args:
        path: The directory; made if missing, with its parents.
        manifest: The parameters asked for.
        fsync_interval_s: See ``Journal``.

    Attributes:
        path: The directory.
        manifest: The run's parameters; ``n`` is the larger of the stored ``n`` and the one asked for.
        n: Completions per problem asked for.
        version_warning: A line of text if the run began with other versions, else the empty string.

    Raises:
        RunMismatchError: If it holds a run with other parameters; the message says what differs.
        RunLockedError: If another process is writing to it; the message gives the process id.
        DataError: If it holds other files but no run, or cannot be read or written.
    """

    def __init__(
        self, path: str | Path, manifest: Manifest, fsync_interval_s: float = FSYNC_INTERVAL_S
    ) -> None:
        self.path = Path(path)
        self.n = manifest.n
        self._lock = _lock(self.path)
        try:
            self.manifest, self.version_warning = _agree(self.path, manifest)
            self._journal = Journal(self.path / JOURNAL_NAME, fsync_interval_s)
            try:
                _check_belongs(self.path, self.manifest, self._journal.keys)
            except BaseException:
                self._journal.close()
                raise
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def finished(self) -> set[tuple[str, int]]:
        """``(task_id, completion_index)`` of every record in the journal; read only."""
        return self._journal.keys

    @property
    def num_torn_bytes(self) -> int:
        """Bytes of an incomplete last line that was removed on opening."""
        return self._journal.num_torn_bytes

    def remaining(self, task_id: str) -> list[int]:
        """Indices of a problem's missing completions, ascending; empty if the problem was ended early."""
        if task_id in self._journal.ended:
            return []
        return [index for index in range(self.n) if (task_id, index) not in self.finished]

    def records(self) -> Iterator[Record]:
        """The journal's records in the order of writing, read from the file one by one."""
        return self._journal.records()

    def append(self, record: Record) -> None:
        """Write a finished completion; see ``Journal.append``."""
        self._journal.append(record)

    def close(self) -> None:
        """Make everything durable and release the lock; a second call does nothing."""
        with SignalsHeld():
            try:
                self._journal.close()
            finally:
                lock, self._lock = self._lock, -1
                if lock >= 0:
                    os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_run(path: str | Path) -> tuple[Manifest, list[Record]]:
    """Read a run without changing it; allowed while another process writes to it.

    Raises:
        DataError: If there is no run, or it cannot be read.
    """
    path = Path(path)
    if not os.path.isdir(path):
        raise DataError(f"run directory: got {one_line(path)}, expected an existing directory")
    if not os.path.lexists(path / MANIFEST_NAME):
        raise DataError(
            f"run directory: {one_line(path)} has no {MANIFEST_NAME}; create one by `treeshare sample --out`"
        )
    Manifest.read(path / MANIFEST_NAME)
    records, _ = read_records(path / JOURNAL_NAME)
    manifest = Manifest.read(path / MANIFEST_NAME)  # again: a writer may have extended the run meanwhile
    _check_belongs(path, manifest, {record.key for record in records})
    return manifest, records


def _check_belongs(path: Path, manifest: Manifest, keys: set[tuple[str, int]]) -> None:
    known = set(manifest.task_ids)
    for task_id, index in keys:
        if task_id not in known or index >= manifest.n:
            raise DataError(
                f"journal: {one_line(path / JOURNAL_NAME)}: {one_line(task_id)} completion {index} does not "
                f"belong to the run ({len(known)} problems, n = {manifest.n}); remove the line"
            )


def check_place(path: str | Path) -> None:
    """Refuse a path that neither holds a run nor can get one. Changes nothing, so it can be called early.

    Raises:
        DataError: If it is not a directory, holds other files but no run, or has a broken manifest.
    """
    path = Path(path)
    try:
        if not os.path.lexists(path):
            nearest = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
            if not nearest.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return
        extra = any(
            name not in (LOCK_NAME, MANIFEST_NAME) and not _PARTIAL_MANIFEST.fullmatch(name)
            for name in os.listdir(path)
        )
    except OSError as error:
        raise DataError(f"--out: cannot use {one_line(path)}: {error.strerror}") from error
    # Checked after listing the files: if another process is beginning a run, its manifest exists before them.
    if os.path.lexists(path / MANIFEST_NAME):
        Manifest.read(path / MANIFEST_NAME)
    elif extra:
        raise DataError(f"--out: {one_line(path)} is not empty and contains no run; give a new directory")


def _lock(path: Path) -> int:
    """Make the directory and take its lock, which the kernel releases however the process ends."""
    check_place(path)  # nothing is written next to a manifest that is not ours
    try:
        make_folders(path)
        lock = open_regular(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    except OSError as error:
        raise DataError(f"--out: cannot use {one_line(path)}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunLockedError(
            f"--out: {one_line(path)} is being written by process {_holder(lock)}; wait for it or stop it"
        ) from error
    except OSError as error:
        os.close(lock)
        raise DataError(f"--out: cannot lock {one_line(path)}: {error.strerror}") from error
    with contextlib.suppress(OSError):  # the id is only for messages: continue if the disk is full
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _holder(lock: int) -> str:
    try:
        content = os.pread(lock, 20, 0)
    except OSError:
        content = b""
    finally:
        os.close(lock)
    return content.decode() if content.isdigit() else "(unknown)"


def _agree(path: Path, wanted: Manifest) -> tuple[Manifest, str]:
    """The run's manifest, written or extended as needed, and a warning if versions differ."""
    with contextlib.suppress(OSError):
        for name in os.listdir(path):
            if _PARTIAL_MANIFEST.fullmatch(name):  # left by a process that was killed while writing it
                (path / name).unlink()
    target = path / MANIFEST_NAME
    if not os.path.lexists(target):
        wanted.write(target)
        return wanted, ""
    stored = Manifest.read(target)
    differences = stored.differences(wanted)
    if differences:
        raise RunMismatchError(
            f"--out: {one_line(path)} contains another run: {'; '.join(differences)}; give a new directory"
        )
    warning = stored.version_warning(wanted)
    if wanted.n > stored.n:
        stored = stored.model_copy(update={"n": wanted.n})
        stored.write(target)
    return stored, warning
