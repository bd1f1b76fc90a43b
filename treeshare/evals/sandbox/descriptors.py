"""Files in memory, pipes, and waiting for them: what a confined process is connected by."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def missing_features() -> list[str]:
    """What sandboxes need of the system and Python has not here, as on macOS; empty where all is there."""
    needed = {
        "os.memfd_create": hasattr(os, "memfd_create"),
        "os.pidfd_open": hasattr(os, "pidfd_open"),
        "fcntl.F_ADD_SEALS": hasattr(fcntl, "F_ADD_SEALS") and hasattr(fcntl, "F_SEAL_SEAL"),
    }
    return [name for name, is_there in needed.items() if not is_there]


@contextlib.contextmanager
def memory_file(content: bytes | None = None) -> Iterator[int]:
    """An unnamed file in memory: sealed with ``content``, or empty and to be appended to."""
    descriptor = os.memfd_create("treeshare", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        if content is None:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
        else:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
            os.lseek(descriptor, 0, os.SEEK_SET)
            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield descriptor
    finally:
        os.close(descriptor)


class Pipe:
    """A pipe with ends that can be closed one by one; all that are left are closed at the end.

    Attributes:
        reading: Descriptor of the end to read from.
        writing: Descriptor of the end to write to.
    """

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self._open = {self.reading, self.writing}

    def close(self, *ends: int) -> None:
        """Close these ends, both by default; what is closed already is passed over."""
        for end in ends or (self.reading, self.writing):
            if end in self._open:
                self._open.discard(end)
                os.close(end)

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def content_of(descriptor: int, limit: int) -> bytes:
    """The beginning of a file in memory."""
    size = min(os.fstat(descriptor).st_size, limit)
    return os.pread(descriptor, size, 0)


def is_ready(descriptor: int, seconds: float, events: int = select.POLLIN) -> bool:
    """Wait until there is something to read, or everybody who could write has gone."""
    poll = select.poll()
    poll.register(descriptor, events)
    return bool(poll.poll(max(0, math.ceil(seconds * 1000))))


def has_ended(pid: int, seconds: float) -> bool:
    """Wait for a child's end without polling; False if it did not come in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return is_ready(descriptor, seconds)
    finally:
        os.close(descriptor)
