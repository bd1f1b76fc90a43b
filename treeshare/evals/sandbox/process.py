"""Running one confined process: its files, its time, and what it is to be called. Shared by all backends."""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import math
import os
import secrets
import select
import signal
import subprocess
import threading
import time
from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from treeshare.errors import ConfigError, one_line
from treeshare.evals import values
from treeshare.evals.sandbox.base import Execution, Limits, Sandbox, SandboxError, Verdict
from treeshare.evals.sandbox.interpreter import spare_uid
from treeshare.evals.values import NoValueError, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from treeshare.evals.sandbox.base import Call

HARNESS = Path(__file__).with_name("harness.py")
_CODEC = marshal.dumps(compile(Path(values.__file__).read_bytes(), "values.py", "exec", dont_inherit=True))
"""The module ``values``, compiled, which takes milliseconds: the sandbox runs the same interpreter."""

_KILL_S = 5.0
"""Seconds that dying may take before the sandbox counts as broken."""

_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",  # numpy would start a thread, and reserve memory, for each core
}
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_EXTRA_BYTES = 4096
_START_S = 30.0
"""Seconds that starting may take, on a busy machine, before the sandbox counts as broken."""

_VERDICTS = {verdict.value: verdict for verdict in Verdict}


@dataclass(frozen=True, kw_only=True)
class Files:
    """Descriptors of one run; all but ``started`` are unnamed files in memory.

    Attributes:
        source: The nonce, the program, and, for a call, the module ``values`` and what to call; sealed.
        stdin: The program's input; sealed.
        stdout: Takes output; the file size limit holds for it.
        stderr: The same.
        report: Takes what the harness reports.
        started: The writing end of a pipe; the harness writes to it and closes it before the program runs.
    """

    source: int
    stdin: int
    stdout: int
    stderr: int
    report: int
    started: int


class ProcessSandbox(Sandbox):
    """A sandbox that starts one process for each program; a backend says how.

    As root, the program gets an unused user id, a different one for each run.
    """

    def __init__(self) -> None:
        self.is_root = os.geteuid() == 0
        if self.is_root:
            spare_uid(0)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    @abstractmethod
    def command(self, spec: dict[str, str], limits: Limits) -> tuple[list[str], dict[str, bytes]]:
        """The command line that runs the harness confined, and files that it needs.

        Args:
            spec: What the harness is to be told; the backend adds to it. Passed on as ``name=value``.
            limits: Of the program.

        Returns:
            The arguments, with ``"{name}"`` where the descriptor of the file ``name`` belongs.
        """

    def run(
        self,
        program: str,
        *,
        stdin: bytes = b"",
        limits: Limits | None = None,
        call: Call | None = None,
        as_main: bool = True,
    ) -> Execution:
        """See ``Sandbox.run``."""
        limits = limits or Limits()
        nonce = secrets.token_hex(16).encode()
        text = program.encode("utf-8", "surrogatepass")
        codec, request = (b"", b"") if call is None else (_CODEC, _request(call))
        began = time.perf_counter()
        with contextlib.ExitStack() as stack:
            started, started_end = stack.enter_context(_pipe())
            files = Files(
                source=stack.enter_context(_memory_file(nonce + text + codec + request)),
                stdin=stack.enter_context(_memory_file(stdin)),
                stdout=stack.enter_context(_memory_file()),
                stderr=stack.enter_context(_memory_file()),
                report=stack.enter_context(_memory_file()),
                started=started_end,
            )
            spec = self._spec(limits, files, as_main=as_main)
            spec |= {"program_bytes": str(len(text)), "codec_bytes": str(len(codec))}
            try:
                process = self._start(files, spec, limits, stack)
            finally:
                os.close(started_end)
            try:
                has_started = _readable(started, _START_S) and bool(os.read(started, 1))
                timed_out = has_started and not _ended(process, limits.wall_s)
            finally:
                self._kill(process)
            if self._closed:
                raise SandboxError("sandbox: closed")
            execution = Execution(
                verdict=Verdict.RUNTIME_ERROR,
                detail="",
                exit_code=_exit_code(process.returncode),
                stdout=_content(files.stdout, limits.output_bytes),
                stderr=_content(files.stderr, limits.output_bytes),
                wall_s=time.perf_counter() - began,
            )
            printed = os.fstat(files.stdout).st_size + os.fstat(files.stderr).st_size
            if not has_started:
                raise SandboxError(
                    f"sandbox: {one_line(_last_line(execution.stderr)) or 'the program did not start'}"
                )
            report = _content(files.report, limits.output_bytes + _EXTRA_BYTES)
            if printed > limits.output_bytes or len(report) == limits.output_bytes + _EXTRA_BYTES:
                detail = f"more than {limits.output_bytes} bytes of output"
                return replace(execution, verdict=Verdict.OUTPUT_LIMIT, detail=detail)
            if timed_out:
                return replace(
                    execution, verdict=Verdict.TIMEOUT, detail=f"not done after {limits.wall_s:g} s"
                )
        return _judged(execution, report, nonce)

    def close(self) -> None:
        """See ``Sandbox.close``."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _spec(self, limits: Limits, files: Files, *, as_main: bool) -> dict[str, str]:
        """What the harness is told by every backend."""
        return {
            "source": str(files.source),
            "report": str(files.report),
            "started": str(files.started),
            "as_main": str(int(as_main)),
            "uid": str(spare_uid(secrets.randbits(32)) if self.is_root else 0),
            "cpu_s": str(math.ceil(limits.wall_s) + 1),
            "file_bytes": str(limits.file_bytes),
            "memory_bytes": str(limits.memory_bytes),
        }

    def _start(
        self, files: Files, spec: dict[str, str], limits: Limits, stack: contextlib.ExitStack
    ) -> subprocess.Popen[bytes]:
        arguments, contents = self.command(spec, limits)
        extra = {name: stack.enter_context(_memory_file(content)) for name, content in contents.items()}
        places = {f"{{{name}}}": str(descriptor) for name, descriptor in extra.items()}
        arguments = [places.get(argument, argument) for argument in arguments]
        arguments += [f"{name}={places.get(value, value)}" for name, value in spec.items()]
        with self._lock:
            if self._closed:
                raise SandboxError("sandbox: closed")
            try:
                process = subprocess.Popen(
                    arguments,
                    stdin=files.stdin,
                    stdout=files.stdout,
                    stderr=files.stderr,
                    pass_fds=(files.source, files.report, files.started, *extra.values()),
                    start_new_session=True,
                    cwd="/",
                    env=_ENVIRONMENT,
                )
            except OSError as error:
                raise SandboxError(f"sandbox: cannot start {arguments[0]}: {error.strerror}") from error
            self._running.add(process)
        return process

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the process that was started; with it dies all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(_KILL_S)
        except subprocess.TimeoutExpired as error:
            raise SandboxError("sandbox: a program cannot be killed") from error
        with self._lock:
            self._running.discard(process)


def python_options(text: str) -> list[str]:
    """Python's arguments: no environment but the hash seed, no site packages, nothing written, UTF-8.

    Integers may have any number of digits, as in other judges: it is the time limit that bounds them.
    """
    return ["-s", "-S", "-P", "-B", "-X", "utf8", "-X", "int_max_str_digits=0", "-c", text]


def _request(call: Call) -> bytes:
    """What the harness is to call."""
    try:
        return encode([call.entry_point, call.args]).encode()
    except NoValueError as error:
        raise ConfigError.of("args", got=error, expected="JSON values, also tuples, sets, bytes") from None


def _judged(execution: Execution, report: bytes, nonce: bytes) -> Execution:
    """``execution`` with the verdict of the harness, or of how the process ended without it."""
    lines = report.removeprefix(nonce).decode("utf-8", "replace").split("\n", 2)
    if report.startswith(nonce) and len(lines) == 3 and lines[0] in _VERDICTS:
        verdict, detail, value = lines
        if verdict != Verdict.PASSED or execution.exit_code == 0:
            return replace(
                execution, verdict=_VERDICTS[verdict], detail=one_line(detail), value=value or None
            )
    if execution.exit_code >= 0:
        return replace(execution, detail=f"left before its end, exit status {execution.exit_code}")
    name = signal.Signals(-execution.exit_code).name
    verdict_of = {"SIGSYS": Verdict.FORBIDDEN, "SIGXCPU": Verdict.TIMEOUT}
    return replace(execution, verdict=verdict_of.get(name, Verdict.RUNTIME_ERROR), detail=f"killed by {name}")


def _exit_code(returned: int) -> int:
    """What the program left with: bubblewrap adds 128 to a signal's number."""
    return 128 - returned if returned - 128 in set(signal.Signals) else returned


def _ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the end without polling; False if it did not come in time."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        return _readable(descriptor, seconds)
    finally:
        os.close(descriptor)


def _readable(descriptor: int, seconds: float) -> bool:
    """Wait until there is something to read, or everybody who could write has gone."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(math.ceil(seconds * 1000)))


def _content(descriptor: int, limit: int) -> bytes:
    """The beginning of a file in memory."""
    size = min(os.fstat(descriptor).st_size, limit)
    return os.pread(descriptor, size, 0)


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@contextlib.contextmanager
def _memory_file(content: bytes | None = None) -> Iterator[int]:
    """An unnamed file in memory: sealed with ``content``, or empty and to be appended to."""
    descriptor = os.memfd_create("treeshare", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        if content is None:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
        else:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
            os.lseek(descriptor, 0, os.SEEK_SET)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """A pipe; its reading end is closed at the end, its writing end by the caller."""
    read_fd, write_fd = os.pipe()
    try:
        yield read_fd, write_fd
    finally:
        os.close(read_fd)
