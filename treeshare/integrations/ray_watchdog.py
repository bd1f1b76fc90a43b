"""A process that ends a Ray cluster of ours after its driver has ended, however it ended.

Ray's own processes are bound to their parent's life only in part: when the driver is killed, agents of a node
stay. This file is also the program of that process; it needs the standard library alone, and ``/proc``.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_POLL_S, _LONGEST_S = 0.5, 20.0
"""How often the driver's life is looked at, and how long processes are ended that keep appearing."""

_PROC = Path("/proc")


class Watchdog:
    """A process that ends the cluster whose files lie in ``folder`` as soon as this process has gone.

    Attributes:
        folder: To be Ray's temporary directory, of this cluster only; removed at the end.
    """

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="ray", dir=os.environ.get("RAY_TMPDIR"))
        # A session of its own: what is typed at the terminal, or sent to the driver's group, does not end it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self.folder, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        """End what is left of the cluster, and wait until it has gone."""
        self._process.communicate()


def processes_of(folder: str) -> dict[int, str]:
    """Ray's processes that work in ``folder``, and when each was started: a number may come again."""
    found = {}
    for entry in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            state, *_, started = (
                entry.joinpath("stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[:20]
            )
            words = entry.joinpath("cmdline").read_bytes().split(b"\0")
            if state not in "ZX" and int(entry.name) != os.getpid() and _is_of(entry, words, folder.encode()):
                found[int(entry.name)] = started
    return found


def _is_of(entry: Path, words: list[bytes], folder: bytes) -> bool:
    """Whether a process is one of Ray's, and by its arguments or open files of the cluster in ``folder``."""
    if words[0].startswith(b"ray::"):  # a title in place of the arguments
        files = (os.readlink(file) for file in _files(entry))
        return any(file.startswith(folder.decode() + "/") for file in files)
    is_ray = any(b"/ray/" in word and folder not in word for word in words[:4])
    return is_ray and any(folder + b"/" in word or word.endswith(folder) for word in words)


def _files(entry: Path) -> list[Path]:
    """Links to what a process has open."""
    return list(entry.joinpath("fd").iterdir())


def end_cluster(folder: str) -> None:
    """Kill the processes of a cluster until none is left, and remove its files."""
    until = time.monotonic() + _LONGEST_S
    num_empty = 0
    while num_empty < 2 and time.monotonic() < until:
        found = processes_of(folder)
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        num_empty = 0 if found else num_empty + 1
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def watch(folder: str, driver: int) -> None:
    """Wait until the driver has closed this process's input, or has gone; then end its cluster."""
    while os.getppid() == driver:
        readable, _, _ = select.select([sys.stdin], [], [], _POLL_S)
        if readable and not os.read(sys.stdin.fileno(), 1):
            break
    end_cluster(folder)


if __name__ == "__main__":
    watch(sys.argv[1], int(sys.argv[2]))
