"""Isolation by bubblewrap: own namespaces for everything, a read-only interpreter, a scratch folder, rlimits.

What is not bounded: memory over all processes together is bounded only by ``processes x memory_bytes``; the
kernel's system calls are not filtered; and a program can cheat at its own tests, as it shares a process with
them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING

from treeshare.errors import SandboxUnavailableError
from treeshare.evals.sandbox.base import Execution, Limits, Sandbox, SandboxError, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTALL_HINT = "install bubblewrap: apt-get install bubblewrap"

KEPT_BYTES = 64 << 10
"""Bytes kept of stdout and of stderr."""

INSIDE_PREFIX = Path("/python")
"""Where programs see the interpreter's folder: its real path may name the user, under a closed folder."""

_HARNESS = Path(__file__).with_name("harness.py")
_FIRST_UID = 1_000_000
_SPARE_S = 5.0
"""Seconds that killing may take before the sandbox counts as broken."""


class BubblewrapSandbox(Sandbox):
    """Runs each program in a bubblewrap of its own.

    As root, the program gets a user id that nobody has, another one for each run: ``RLIMIT_NPROC`` is ignored
    for root, and counts all processes of a user. Otherwise it runs in a user namespace.

    Raises:
        SandboxUnavailableError: If bubblewrap is missing or the interpreter cannot be bound; the message says
            what to do.
    """

    def __init__(self) -> None:
        path = shutil.which("bwrap")
        if path is None:
            raise SandboxUnavailableError(f"sandbox: bwrap not found; {INSTALL_HINT}")
        self._bwrap = path
        self._python, self._prefix = _interpreter()
        self._is_root = os.geteuid() == 0
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def run(self, program: str, *, stdin: bytes = b"", limits: Limits | None = None) -> Execution:
        """See ``Sandbox.run``."""
        limits = limits or Limits()
        nonce = secrets.token_hex(16)
        started = time.perf_counter()
        source = nonce.encode() + b"\n" + program.encode("utf-8", "surrogatepass")
        with (
            _memory_file(source) as source_fd,
            _memory_file(stdin) as stdin_fd,
            _pipe() as (read_fd, write_fd),
        ):
            process = self._start(limits, source_fd, stdin_fd, write_fd)
            os.close(write_fd)
            output = _Output(process, limits.output_bytes)
            try:
                timed_out = self._wait(process, limits.wall_s)
            finally:
                self._kill(process)
                output.join()
            os.set_blocking(read_fd, False)
            report = _read_report(read_fd, nonce)
        verdict, detail = _judge(report, process.returncode, output, timed_out=timed_out, limits=limits)
        return Execution(
            verdict=verdict,
            detail=detail,
            exit_code=process.returncode,
            stdout=bytes(output.stdout),
            stderr=bytes(output.stderr),
            wall_s=time.perf_counter() - started,
        )

    def close(self) -> None:
        """See ``Sandbox.close``."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            self._kill(process)

    def _start(
        self, limits: Limits, source_fd: int, stdin_fd: int, report_fd: int
    ) -> subprocess.Popen[bytes]:
        inner = asdict(limits) | {"uid": _FIRST_UID + secrets.randbelow(1 << 28) if self._is_root else 0}
        command = [self._bwrap, *self._options, "--size", str(limits.file_bytes), "--perms", "1777"]
        command += ["--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/"]
        command += ["--", str(self._python), "-I", "-S", "-c", _HARNESS.read_text(encoding="utf-8")]
        command += [str(source_fd), str(report_fd), json.dumps(inner)]
        with self._lock:
            if self._closed:
                raise SandboxError("sandbox: closed")
            try:
                process = subprocess.Popen(
                    command,
                    stdin=stdin_fd,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=(source_fd, report_fd),
                    start_new_session=True,
                    env={},
                )
            except OSError as error:
                raise SandboxError(f"sandbox: cannot start bwrap: {error.strerror}") from error
            self._running.add(process)
        return process

    @cached_property
    def _options(self) -> list[str]:
        """Bubblewrap's arguments that are the same for every run."""
        options = ["--die-with-parent", "--new-session", "--clearenv"]
        options += [
            "--unshare-ipc",
            "--unshare-pid",
            "--unshare-net",
            "--unshare-uts",
            "--unshare-cgroup-try",
        ]
        if self._is_root:
            options += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            options += ["--unshare-user", "--disable-userns"]
        options += ["--hostname", "sandbox", "--ro-bind", "/usr", "/usr"]
        for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
            if os.path.islink(name):
                options += ["--symlink", os.readlink(name), name]
            elif os.path.isdir(name):
                options += ["--ro-bind", name, name]
        options += [
            "--perms",
            "0755",
            "--dir",
            "/etc",
            "--ro-bind-try",
            "/etc/ld.so.cache",
            "/etc/ld.so.cache",
        ]
        if self._prefix is not None:
            options += ["--ro-bind", str(self._prefix), str(INSIDE_PREFIX)]
            options += ["--setenv", "LD_LIBRARY_PATH", str(INSIDE_PREFIX / "lib")]
        for name, value in (("PATH", "/usr/bin:/bin"), ("HOME", "/tmp"), ("LANG", "C.UTF-8")):
            options += ["--setenv", name, value]
        return [*options, "--setenv", "PYTHONHASHSEED", "0", "--proc", "/proc", "--dev", "/dev"]

    def _wait(self, process: subprocess.Popen[bytes], wall_s: float) -> bool:
        """Wait for the end; True if it did not come in time."""
        try:
            process.wait(wall_s)
        except subprocess.TimeoutExpired:
            return True
        return False

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill bubblewrap; its death kills the namespace's first process, and that all the others."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(_SPARE_S)
        except subprocess.TimeoutExpired as error:
            raise SandboxError("sandbox: bwrap cannot be killed") from error
        with self._lock:
            self._running.discard(process)


class _Output:
    """Reads stdout and stderr to their ends, keeps the beginnings, kills at the limit."""

    def __init__(self, process: subprocess.Popen[bytes], limit: int) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.stdout, self.stderr = bytearray(), bytearray()
        self.exceeded = False
        self._process, self._left, self._lock = process, limit, threading.Lock()
        pairs = ((process.stdout, self.stdout), (process.stderr, self.stderr))
        self._threads = [threading.Thread(target=self._drain, args=pair, daemon=True) for pair in pairs]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until both have ended.

        Raises:
            SandboxError: If somebody outside the namespace holds them open.
        """
        for thread in self._threads:
            thread.join(_SPARE_S)
        if any(thread.is_alive() for thread in self._threads):
            raise SandboxError("sandbox: output still open after everything was killed")

    def _drain(self, stream: IO[bytes], kept: bytearray) -> None:
        with stream:
            while block := os.read(stream.fileno(), 1 << 16):
                kept += block[: KEPT_BYTES - len(kept)]
                with self._lock:
                    self._left -= len(block)
                    over = self._left < 0
                if over and not self.exceeded:
                    self.exceeded = True
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._process.pid, signal.SIGKILL)


def _judge(
    report: dict[str, str] | None, exit_code: int, output: _Output, *, timed_out: bool, limits: Limits
) -> tuple[Verdict, str]:
    """The verdict, from what the harness reported and how the process ended."""
    if output.exceeded:
        return Verdict.OUTPUT_LIMIT, f"more than {limits.output_bytes} bytes of output"
    if timed_out:
        return Verdict.TIMEOUT, f"not done after {limits.wall_s} s"
    if report is not None:
        return Verdict(report["verdict"]), report["detail"]
    if exit_code in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        return Verdict.TIMEOUT, f"more than {limits.cpu_s} s of CPU"
    if exit_code == 1 and bytes(output.stderr).startswith(b"bwrap: "):
        raise SandboxError("sandbox: " + bytes(output.stderr).decode(errors="replace").splitlines()[0])
    if b"MemoryError" in bytes(output.stderr)[-4096:]:
        return Verdict.MEMORY, "out of memory outside the program"
    return Verdict.RUNTIME_ERROR, f"left before its end, exit status {exit_code}"


def _read_report(descriptor: int, nonce: str) -> dict[str, str] | None:
    """What the harness reported, or None if nothing or nothing of ours."""
    try:
        content = os.read(descriptor, 1 << 16)
        report = json.loads(content)
        known = {verdict.value for verdict in Verdict}
        if report["nonce"] == nonce and report["verdict"] in known and isinstance(report["detail"], str):
            return {"verdict": report["verdict"], "detail": report["detail"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    """An unnamed file with ``content``, open for reading at its beginning."""
    descriptor = os.memfd_create("treeshare")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """A pipe; its reading end is closed at the end, its writing end by whoever hands it on."""
    read_fd, write_fd = os.pipe()
    try:
        yield read_fd, write_fd
    finally:
        os.close(read_fd)


def _interpreter() -> tuple[Path, Path | None]:
    """The interpreter's path inside, and the folder on the host to show as ``INSIDE_PREFIX``, if any.

    Raises:
        SandboxUnavailableError: If that folder holds the user's home folder: it cannot be shown to a program.
    """
    executable = Path(os.path.realpath(sys.executable))
    prefix = Path(os.path.realpath(sys.base_prefix))
    if prefix.is_relative_to("/usr") and executable.is_relative_to("/usr"):
        return executable, None
    if not executable.is_relative_to(prefix) or Path.home().resolve().is_relative_to(prefix):
        raise SandboxUnavailableError(
            f"sandbox: the interpreter {executable} cannot be shown to programs without your files; "
            "use a Python that lies in a folder of its own"
        )
    return INSIDE_PREFIX / executable.relative_to(prefix), prefix
