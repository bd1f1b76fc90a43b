"""A run's directory: its manifest, its journal, and one writer at a time."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Self

from treeshare.errors import DataError, RunLockedError, RunMismatchError
from treeshare.runs.journal import Journal, Record, read_records
from treeshare.runs.manifest import Manifest, sync_folder

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

MANIFEST_NAME = "manifest.json"
JOURNAL_NAME = "samples.jsonl"
LOCK_NAME = ".lock"


class RunDirectory:
    """A run open for writing; a context manager.

    A directory that holds a run with the same parameters is resumed; one with a larger ``n`` is extended.
    Asked for a smaller ``n`` than it has, a run stays as it is: what it holds is a superset.

    Args:
        path: Made if missing, with its parents.
        manifest: What the run is to be.

    Attributes:
        manifest: What the run is: ``n`` is the larger of the two.
        finished: ``(task_id, completion_index)`` of what the journal holds.

    Raises:
        RunMismatchError: If it holds a run with other parameters; the message says what differs.
        RunLockedError: If another process is writing to it.
        DataError: If it holds somebody's files but no run, or cannot be read or written.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self._lock = _lock(path)
        try:
            self.manifest = _agree(path, manifest)
            self._journal = Journal(path / JOURNAL_NAME)
        except BaseException:
            os.close(self._lock)
            raise
        self.finished = {record.key for record in self._journal.records}

    @property
    def num_torn_bytes(self) -> int:
        """Length of the torn last line that was cut away on opening."""
        return self._journal.num_torn_bytes

    def remaining(self, task_id: str) -> list[int]:
        """Completion indices of a problem that are still to be made."""
        return [index for index in range(self.manifest.n) if (task_id, index) not in self.finished]

    def append(self, record: Record) -> None:
        """Write a finished completion; see ``Journal.append``."""
        assert record.key not in self.finished, "a completion is written once"
        self._journal.append(record)
        self.finished.add(record.key)

    def close(self) -> None:
        """Make everything durable and let go of the directory."""
        try:
            self._journal.close()
        finally:
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_run(path: Path) -> tuple[Manifest, list[Record]]:
    """Read a run without touching it; also while another process writes to it.

    Raises:
        DataError: If there is no run, or it cannot be read.
    """
    if not path.is_dir():
        raise DataError(f"run directory: got {path}, expected an existing folder")
    if not (path / MANIFEST_NAME).exists():
        raise DataError(f"run directory: {path} holds no {MANIFEST_NAME}; `treeshare sample --out` makes one")
    manifest = Manifest.read(path / MANIFEST_NAME)
    return manifest, read_records(path / JOURNAL_NAME)[0]


def _lock(path: Path) -> int:
    """Make the directory and take its lock; the kernel gives it back however the process ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        foreign = not (path / MANIFEST_NAME).exists() and any(
            entry.name != LOCK_NAME and not entry.name.startswith(f".{MANIFEST_NAME}-")
            for entry in path.iterdir()
        )
        if foreign:
            raise DataError(f"--out: {path} is not empty and holds no run; give a new folder")
        lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DataError(f"--out: cannot use {path}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace") or "unknown"
        os.close(lock)
        if not isinstance(error, BlockingIOError):
            raise DataError(f"--out: cannot lock {path}: {error.strerror}") from error
        raise RunLockedError(
            f"--out: {path} is being written by process {holder}; wait for it or stop it"
        ) from error
    return lock


def _agree(path: Path, wanted: Manifest) -> Manifest:
    """The run's manifest, written or extended as needed."""
    target = path / MANIFEST_NAME
    if not target.exists():
        wanted.write(target)
        sync_folder(path.parent)
        return wanted
    held = Manifest.read(target)
    differences = held.differences(wanted)
    if differences:
        raise RunMismatchError(
            f"--out: {path} holds another run: {'; '.join(differences)}; give a new folder"
        )
    if wanted.n > held.n:
        held = held.model_copy(update={"n": wanted.n})
        held.write(target)
    return held
