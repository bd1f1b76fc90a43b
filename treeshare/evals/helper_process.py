"""A helper process for computations that may take too much time or memory.

For work of our own on texts from outside, such as simplifying an expression: nothing of the texts is run.
Models' programs belong into the sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treeshare.errors import ConfigError

_LOOP = Path(__file__).with_name("helper_loop.py")
_START_S = 120.0
"""Seconds that starting may take, on a busy machine."""
_WAIT_FACTOR = 12
"""How many times its processor time a request may take on the clock: other programs run, too."""


class HelperError(Exception):
    """There is no answer; the message says what happened, in a few words."""


class HelperMissingError(HelperError):
    """A package that the helper needs is not installed."""


class _DiedError(HelperError):
    """The process died, and not by a limit."""


@dataclass(frozen=True, kw_only=True)
class HelperLimits:
    """What one request may use.

    Attributes:
        cpu_s: Seconds of processor time, beyond which the process ends.
        memory_bytes: Address space of the process.
    """

    cpu_s: float = 4.0
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if not 0 < self.cpu_s < 3600:
            raise ConfigError.of("cpu_s", got=self.cpu_s, expected="seconds, more than 0 and below 3600")
        if self.memory_bytes < 128 << 20:
            raise ConfigError.of("memory_bytes", got=self.memory_bytes, expected="at least 128 MiB")


class HelperProcess:
    """Answers requests in a process of its own. Safe to call from several threads, which take turns.

    The process starts with the first request and ends with this one, whatever it is doing.

    Args:
        module: A file with ``prepare`` and ``answer``; see ``helper_loop``.
        limits: Of each request.

    Attributes:
        num_started: Processes that were started.
    """

    def __init__(self, module: Path, limits: HelperLimits | None = None) -> None:
        self.limits = limits or HelperLimits()
        self.num_started = 0
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._missing = ""
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            HelperMissingError: If the helper lacks a package.
            HelperError: If a limit ended it.
        """
        line = json.dumps(request | {"cpu_s": self.limits.cpu_s}).encode() + b"\n"
        with self._lock:
            if self._missing:
                raise HelperMissingError(self._missing)
            try:
                answer = self._answer(line)
            except _DiedError:  # of something else than this request, perhaps
                answer = self._answer(line)
            if "exhausted" in answer:
                self._end()
                raise HelperError(f"more than {self.limits.memory_bytes >> 20} MiB of memory")
            return answer

    def close(self) -> None:
        """End the process; the next request starts another."""
        with self._lock:
            self._end()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._end()

    def _answer(self, line: bytes) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except OSError as error:
            self._end()
            raise _DiedError("the helper process died") from error
        answer = self._read(process, self.limits.cpu_s * _WAIT_FACTOR)
        if answer is None:
            status = process.poll()
            self._end()
            if status in (None, -signal.SIGPROF):
                raise HelperError(f"more than {self.limits.cpu_s:g} s of processor time")
            raise _DiedError(f"the helper process died ({status})")
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        self.num_started += 1
        memory, parent = str(self.limits.memory_bytes), str(os.getpid())
        process = self._process = subprocess.Popen(
            [sys.executable, "-P", "-X", "utf8", str(_LOOP), memory, parent, str(self._module)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        ready = self._read(process, _START_S)
        if ready is None:
            self._end()
            raise HelperError("the helper process does not start")
        if "missing" in ready:
            self._end()
            self._missing = str(ready["missing"])
            raise HelperMissingError(self._missing)
        return process

    def _read(self, process: subprocess.Popen[bytes], wait_s: float) -> dict[str, Any] | None:
        """One line of the process; None if none comes."""
        assert process.stdout is not None
        deadline = time.monotonic() + wait_s
        received = b""
        while not received.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([process.stdout], [], [], left)
            part = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if not part:
                if ready:  # it has closed its end: its own exit status, not that of being killed
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(5.0)
                return None
            received += part
        answer: dict[str, Any] = json.loads(received)
        return answer

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
