"""A process that a sandbox has started, and what it leaves behind when it ends.

bubblewrap's first process inside outlives the one outside, nobody of its own family waits for it, and so it
is left to process 1. In a container that is often the command itself or one that never waits: each program
would leave an entry there, up to the container's limit of processes. While such a process lives, the calling
process is therefore the one to whom the kernel gives orphans, and waits for this one by its id. It waits for
no other process: the caller's own children are left to the caller.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from treeshare.evals.sandbox.base import SandboxError
from treeshare.evals.sandbox.descriptors import Pipe, has_ended, is_ready

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

_KILL_S = 5.0
"""Seconds that dying may take before the sandbox counts as broken."""

_INFO_BYTES = 4096
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37


class Adoption:
    """While it is held, orphans among the descendants become children of this process.

    Held by any number of threads at once; the last one puts back what was there before the first. An orphan
    of the caller's own that ends up here in the meantime is not waited for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._was_on = False
        self._pid = os.getpid()

    def take(self) -> None:
        """Begin to hold it."""
        with self._lock:
            if self._pid != os.getpid():  # a fork: its parent's children are not its own
                self._pid, self._holders = os.getpid(), 0
            self._holders += 1
            if self._holders == 1:
                self._was_on = _adopts()
                _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def drop(self) -> None:
        """End holding it."""
        with self._lock:
            if self._pid != os.getpid() or not self._holders:
                return
            self._holders -= 1
            if not self._holders and not self._was_on:
                _prctl(_PR_SET_CHILD_SUBREAPER, 0)


ADOPTION = Adoption()
"""The kernel keeps this for a process as a whole: so is this."""


class Child:
    """A started process.

    Args:
        start: Starts it.
        info: A pipe to which it writes, as JSON, the ``child-pid`` that it will leave behind; None for a
            process that leaves none.

    Raises:
        OSError: If it cannot be started.
    """

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]], info: Pipe | None) -> None:
        self.began = time.perf_counter()
        self._info = info
        self._lock = threading.Lock()
        self._is_over = False
        if info is not None:
            ADOPTION.take()
        try:
            self._process = start()
        except BaseException:
            if info is not None:
                ADOPTION.drop()
            raise
        if info is not None:
            info.close(info.writing)

    @property
    def pid(self) -> int:
        """Its process id; also its group's."""
        return self._process.pid

    @property
    def returncode(self) -> int:
        """What it has ended with, by ``subprocess``'s convention, once it was killed or waited for."""
        assert self._process.returncode is not None
        return self._process.returncode

    def interrupt(self) -> None:
        """Kill it without waiting for its end."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill it, and wait for its end and for the end of what it leaves behind.

        Raises:
            subprocess.TimeoutExpired: If it does not end.
            SandboxError: If what it leaves behind does not.
        """
        with self._lock:
            if self._is_over:
                return
            self.interrupt()
            has_ended(self._process.pid, _KILL_S)  # subprocess would look again and again
            self._process.wait(0)
            self._is_over = True
            if self._info is None:
                return
            try:
                self._wait_for_the_rest(self._info)
            finally:
                ADOPTION.drop()

    def _wait_for_the_rest(self, info: Pipe) -> None:
        """Wait for the process inside, which is this one's child since the one outside has ended."""
        text = os.read(info.reading, _INFO_BYTES) if is_ready(info.reading, 0) else b""
        try:
            pid = int(json.loads(text)["child-pid"])
        except (ValueError, KeyError, TypeError):
            return  # ended before it had one
        try:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                os.kill(pid, signal.SIGKILL)  # not yet waited for, so the id is still its own
                if not has_ended(pid, _KILL_S):
                    raise SandboxError("sandbox: a program's first process cannot be killed")
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return  # somebody else has waited for it: the caller waits for every child


def _prctl(option: int, value: object) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _adopts() -> bool:
    """Whether orphans come to this process already."""
    found = ctypes.c_int(0)
    _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(found))
    return bool(found.value)
