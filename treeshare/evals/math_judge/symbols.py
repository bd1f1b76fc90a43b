"""Sympy in a child process, kept for many comparisons and replaced when it dies or hangs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeshare.evals.math_judge.compare import Outcome

if TYPE_CHECKING:
    from treeshare.evals.math_judge.arithmetic import Node

_PROGRAM = Path(__file__).with_name("child.py")
_START_S = 120.0
"""Seconds that importing sympy may take, on a busy machine."""
_WAIT_FACTOR = 12
"""How many times its processor time a comparison may take on the clock: other programs run, too."""

MISSING = "sympy is not installed: pip install treeshare[math]"


@dataclass(frozen=True, kw_only=True)
class SymbolLimits:
    """What one comparison may use.

    Attributes:
        cpu_s: Seconds of processor time.
        memory_bytes: Address space of the child process.
    """

    cpu_s: float = 5.0
    memory_bytes: int = 1 << 30


class ChildSymbols:
    """Compares expressions in a child process. Safe to call from several threads, which take turns.

    Whatever an expression is, a comparison ends: with the child's answer, or with the child's death by one of the
    limits, which counts as not equal. Starting the child again takes about a second.
    """

    def __init__(self, limits: SymbolLimits | None = None) -> None:
        self.limits = limits or SymbolLimits()
        self.num_started = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._missing = ""
        self._lock = threading.Lock()

    def compare(self, first: Node, second: Node, *, up_to_factor: bool = False) -> Outcome:
        """See ``compare.Symbols``."""
        request = {
            "first": _plain(first),
            "second": _plain(second),
            "up_to_factor": up_to_factor,
            "cpu_s": self.limits.cpu_s,
        }
        with self._lock:
            if not self._missing:
                answer = self._ask(json.dumps(request).encode() + b"\n")
                if answer is not None:
                    return Outcome(right=bool(answer["right"]), layer="symbols", reason=str(answer["reason"]))
        return Outcome(right=None, layer="symbols", reason=self._missing)

    def close(self) -> None:
        """End the child process; the next comparison starts another."""
        with self._lock:
            self._end()

    def _ask(self, line: bytes) -> dict[str, Any] | None:
        """The child's answer, or why there is none; None if there is no sympy."""
        child = self._running()
        if child is None:
            return None
        assert child.stdin is not None
        try:
            child.stdin.write(line)
            child.stdin.flush()
        except OSError:
            self._end()
            return {"right": False, "reason": "the child process died"}
        answer = self._read(child, self.limits.cpu_s * _WAIT_FACTOR)
        if answer is None:
            status = child.poll()
            self._end()
            took = f"more than {self.limits.cpu_s:g} s of processor time"
            reason = took if status is None or status == -24 else f"the child process died ({status})"
            return {"right": False, "reason": reason}
        if child.poll() is not None or "memory" in str(answer["reason"]):
            self._end()
        return answer

    def _running(self) -> subprocess.Popen[bytes] | None:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._end()
        self.num_started += 1
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-X", "utf8", str(_PROGRAM), str(self.limits.memory_bytes), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        ready = self._read(self._child, _START_S)
        if ready is None or "missing" in ready:
            self._missing = MISSING if ready else "symbols: the child process does not start"
            self._end()
        return self._child

    def _read(self, child: subprocess.Popen[bytes], wait_s: float) -> dict[str, Any] | None:
        """One line of the child's; None if none comes."""
        assert child.stdout is not None
        deadline = time.monotonic() + wait_s
        received = b""
        while not received.endswith(b"\n"):
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(child.stdout.fileno(), 1 << 16) if ready else b""
            if not part:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.2 if ready else 0)
                return None
            received += part
        answer: dict[str, Any] = json.loads(received)
        return answer

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._end()


def _plain(node: Node) -> Any:  # noqa: ANN401
    """A node as JSON: numbers are hexadecimal, of any length."""
    if isinstance(node, Fraction):
        return ["number", hex(node.numerator), hex(node.denominator)]
    if isinstance(node, str):
        return node
    if node[0] == "call":
        return ["call", node[1], *map(_plain, node[2:])]
    return [node[0], *map(_plain, node[1:])]
