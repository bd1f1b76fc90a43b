"""Starting and ending confined processes; a backend says by what command."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import subprocess
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treeshare.errors import one_line
from treeshare.evals.sandbox.base import Execution, SandboxError, Verdict
from treeshare.evals.sandbox.child import Child
from treeshare.evals.sandbox.descriptors import Pipe, content_of, has_ended, is_ready, memory_file
from treeshare.evals.sandbox.interpreter import spare_uid

if TYPE_CHECKING:
    from collections.abc import Callable

    from treeshare.evals.sandbox.base import Limits
    from treeshare.evals.sandbox.roles import Role

_START_S = 30.0
"""Seconds that starting may take, on a busy machine, before the sandbox counts as broken."""

_ENDING_S = 1.0
"""Seconds that the end of a process may take that has closed everything."""

_STDERR_BYTES = 4096
INFO = "{info}"
"""Stands, in a command, for the descriptor to which it writes which process it leaves behind."""

_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",  # numpy would start a thread, and reserve memory, for each core
}


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a process is for, and what it is given.

    Attributes:
        role: What it is for.
        limits: What it may use.
        told: What the harness is told besides, by ``name=value``.
        inherited: Descriptors that it gets.
        program: Python source.
        nonce: What a report has to begin with.
        request: The module ``values`` and what is to be called; may be empty.
        stdin: The program's input.
    """

    role: Role
    limits: Limits
    told: dict[str, str]
    inherited: tuple[int, ...]
    program: bytes = b""
    nonce: bytes = b"-" * 32
    request: bytes = b""
    stdin: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A confined process, and the unnamed files in memory that it writes to.

    Attributes:
        process: What the backend has started.
        stdout: Takes output; the file size limit holds for it.
        stderr: The same.
    """

    process: Child
    stdout: int
    stderr: int

    def printed(self) -> int:
        """Bytes of output."""
        return os.fstat(self.stdout).st_size + os.fstat(self.stderr).st_size

    def execution(self, limits: Limits) -> Execution:
        """What is known of a process that has ended; the verdict is to be filled in."""
        return Execution(
            verdict=Verdict.RUNTIME_ERROR,
            detail="",
            exit_code=_exit_code(self.process.returncode),
            stdout=content_of(self.stdout, limits.output_bytes),
            stderr=content_of(self.stderr, limits.output_bytes),
            wall_s=time.perf_counter() - self.process.began,
        )


class Launcher:
    """Starts the processes of a sandbox, and knows which are still running.

    As root, each gets an unused user id, a different one for each.

    Args:
        command: ``ProcessSandbox.command``.
    """

    def __init__(
        self, command: Callable[[Role, dict[str, str], Limits], tuple[list[str], dict[str, bytes]]]
    ) -> None:
        self._command = command
        self._is_root = os.geteuid() == 0
        self._running: set[Child] = set()
        weakref.finalize(self, _end, self._running)
        self._lock = threading.Lock()
        self.is_closed = False

    def start(self, order: Order, stack: contextlib.ExitStack) -> Running:
        """Start a process, and wait until its program is about to run; tried twice.

        Args:
            order: What it is for, and what it is given.
            stack: Kills it and closes what belongs to it.

        Raises:
            SandboxError: If it does not start: what each try said, how it ended and after how long.
        """
        told = self._spec(order.limits) | order.told
        try:
            return self._tried(order, told, stack)
        except _NotStartedError as error:
            first = error
        try:
            return self._tried(order, told, stack)
        except _NotStartedError as second:
            raise SandboxError(f"sandbox: {second}; the first try: {first.ending}") from second

    def _tried(self, order: Order, told: dict[str, str], stack: contextlib.ExitStack) -> Running:
        """Try to start a process; what belongs to it is closed with the stack if it starts, now if not."""
        with contextlib.ExitStack() as own:
            stdin, stdout, stderr = (
                own.enter_context(memory_file(content)) for content in (order.stdin, None, None)
            )
            started = own.enter_context(Pipe())
            text = own.enter_context(memory_file(order.nonce + order.program + order.request))
            spec = told | {"source": str(text), "program_bytes": str(len(order.program))}
            spec |= {"started": str(started.writing)}
            arguments, contents = self._command(order.role, spec, order.limits)
            extra = {name: own.enter_context(memory_file(content)) for name, content in contents.items()}
            info = own.enter_context(Pipe()) if INFO in arguments else None
            places = {f"{{{name}}}": str(descriptor) for name, descriptor in extra.items()}
            places |= {} if info is None else {INFO: str(info.writing)}
            arguments = [places.get(argument, argument) for argument in arguments]
            arguments += [f"{name}={places.get(value, value)}" for name, value in spec.items()]
            passed = (text, started.writing, *order.inherited, *extra.values())
            passed += () if info is None else (info.writing,)
            process = self._begun(
                lambda: subprocess.Popen(
                    arguments,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    pass_fds=passed,
                    start_new_session=True,
                    cwd="/",
                    env=_ENVIRONMENT,
                ),
                info,
            )
            own.callback(self.kill, process)
            started.close(started.writing)
            if not (is_ready(started.reading, _START_S) and os.read(started.reading, 1)):
                has_ended(process.pid, _ENDING_S)  # its own exit status, not that of being killed
                after = time.perf_counter() - process.began
                self.kill(process)
                if self.is_closed:
                    raise SandboxError("sandbox: closed")
                said = one_line(_last_line(content_of(stderr, _STDERR_BYTES)))
                raise _NotStartedError(said, _ending(process.returncode, after))
            stack.push(own.pop_all())
        return Running(process=process, stdout=stdout, stderr=stderr)

    def _begun(self, popen: Callable[[], subprocess.Popen[bytes]], info: Pipe | None) -> Child:
        """Start a process and remember it.

        Raises:
            SandboxError: If there is no such program, or the sandbox is closed.
        """
        with self._lock:
            if self.is_closed:
                raise SandboxError("sandbox: closed")
            try:
                process = Child(popen, info)
            except OSError as error:
                raise _NotStartedError(f"cannot start: {error.strerror}", "no process") from error
            self._running.add(process)
            return process

    def end(self, running: Running, limits: Limits) -> Execution:
        """Kill a process, and say what is known of it.

        Raises:
            SandboxError: If the sandbox is closed: it may have been killed by that.
        """
        self.kill(running.process)
        if self.is_closed:
            raise SandboxError("sandbox: closed")
        return running.execution(limits)

    def kill(self, process: Child) -> None:
        """Kill a process that was started; with it dies all that it has started."""
        try:
            process.kill()
        except subprocess.TimeoutExpired as error:
            raise SandboxError("sandbox: a program cannot be killed") from error
        with self._lock:
            self._running.discard(process)

    def close(self) -> None:
        """Kill what is running; nothing can be started then."""
        with self._lock:
            self.is_closed = True
            running = list(self._running)
        for process in running:
            process.interrupt()

    def _spec(self, limits: Limits) -> dict[str, str]:
        """What the harness is told by every backend."""
        return {
            "uid": str(spare_uid(secrets.randbits(32)) if self._is_root else 0),
            "cpu_s": str(math.ceil(limits.wall_s) + 1),
            "file_bytes": str(limits.file_bytes),
            "memory_bytes": str(limits.memory_bytes),
        }


class _NotStartedError(Exception):
    """A process that ended, or took too long, before its program ran.

    Attributes:
        ending: How it ended, and when.
    """

    def __init__(self, said: str, ending: str) -> None:
        self.ending = ending
        super().__init__(f"{said or 'the program did not start'} ({ending})")


def _ending(returned: int, after: float) -> str:
    """How a process ended that did not start."""
    if after >= _START_S:
        return f"not ready after {after:.0f} s, killed"
    code = _exit_code(returned)
    how = f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
    return f"{how} after {after:.2f} s"


def _end(running: set[Child]) -> None:
    """End what a sandbox has left that nobody has closed."""
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired, SandboxError):
            process.kill()


def _exit_code(returned: int) -> int:
    """What the program left with: bubblewrap adds 128 to a signal's number."""
    return 128 - returned if returned - 128 in set(signal.Signals) else returned


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
