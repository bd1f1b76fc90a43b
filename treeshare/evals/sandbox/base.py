"""What a sandbox promises, and what comes out of one."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass

from treeshare.config import require_int
from treeshare.errors import ConfigError, TreeshareError


class SandboxError(TreeshareError, RuntimeError):
    """The sandbox itself broke: nothing is known of the program. Never a program's fault."""


class Verdict(enum.StrEnum):
    """How a program ended."""

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


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use.

    Attributes:
        wall_s: Seconds until everything of it is killed.
        cpu_s: CPU seconds of one process.
        memory_bytes: Address space of one process.
        output_bytes: Bytes on stdout and stderr together.
        file_bytes: Bytes of its scratch folder, and of one file.
        processes: Processes and threads at once.
    """

    wall_s: float = 3.0
    cpu_s: int = 10
    memory_bytes: int = 1 << 30
    output_bytes: int = 4 << 20
    file_bytes: int = 16 << 20
    processes: int = 16

    def __post_init__(self) -> None:
        is_number = isinstance(self.wall_s, (int, float)) and not isinstance(self.wall_s, bool)
        if not is_number or not 0 < self.wall_s < 1e6:
            raise ConfigError.of("wall_s", got=self.wall_s, expected="seconds, more than 0")
        for name in ("cpu_s", "memory_bytes", "output_bytes", "file_bytes", "processes"):
            require_int(name, getattr(self, name), low=1)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a program ran.

    Attributes:
        verdict: How it ended.
        detail: One line: the exception, or what was exceeded; empty when it passed.
        exit_code: Of the outermost process; negative for a signal.
        stdout: The beginning of what it printed.
        stderr: The beginning of what it printed there.
        wall_s: Seconds, start-up included.
    """

    verdict: Verdict
    detail: str
    exit_code: int
    stdout: bytes
    stderr: bytes
    wall_s: float


class Sandbox(ABC):
    """Runs a Python program that nobody trusts.

    The program sees a Python interpreter, the standard library, an empty scratch folder and its input; no
    network, no file of the user's, no environment variable, no process of the host.
    """

    @abstractmethod
    def run(self, program: str, *, stdin: bytes = b"", limits: Limits | None = None) -> Execution:
        """Run ``program`` to its end or to its limits. Safe to call from several threads.

        It has passed if its last statement was executed: leaving early, with whatever exit status, is a
        runtime error.

        Args:
            program: Python source.
            stdin: Its standard input, given as a file.
            limits: ``Limits()`` by default.

        Raises:
            SandboxError: If the sandbox broke. Whatever the program does ends in an ``Execution`` instead.
        """

    @abstractmethod
    def close(self) -> None:
        """Kill what is still running; ``run`` must not be called again."""
