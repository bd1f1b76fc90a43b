"""Running a program in a confined process, alone or for its tests in another one. Shared by all backends."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import time
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from treeshare.errors import ConfigError, one_line
from treeshare.evals.sandbox.base import VERDICTS, Execution, Limits, Sandbox, SandboxError, Verdict
from treeshare.evals.sandbox.conversation import (
    Channel,
    Examiner,
    ExaminerLostError,
    TooLateError,
    TooLongError,
    converse,
)
from treeshare.evals.sandbox.descriptors import Pipe, content_of, has_ended, memory_file
from treeshare.evals.sandbox.examiners import Examiners
from treeshare.evals.sandbox.interpreter import spare_uid
from treeshare.evals.sandbox.launcher import Launcher, Order
from treeshare.evals.sandbox.roles import LAUNCHER, Role, codec_code
from treeshare.evals.values import NoValueError, encode

if TYPE_CHECKING:
    from treeshare.evals.sandbox.base import Call, OutsideTests

_EXTRA_BYTES = 4096


class ProcessSandbox(Sandbox):
    """A sandbox that starts one process for each program; a backend says how.

    As root, the program gets an unused user id, a different one for each run. For ``examine`` there is a
    second process, which is kept for other tests; nothing of a test is left in it.
    """

    def __init__(self) -> None:
        self.is_root = os.geteuid() == 0
        if self.is_root:
            spare_uid(0)
        self._launcher = Launcher(self.command)
        self._examiners = Examiners(self._start_examiner)

    @abstractmethod
    def command(self, role: Role, spec: dict[str, str], limits: Limits) -> tuple[list[str], dict[str, bytes]]:
        """The command line that runs the harness confined, and files that it needs.

        Args:
            role: What the process is for.
            spec: What the harness is to be told; the backend adds to it. Passed on as ``name=value``.
            limits: Of the process.

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
        codec, request = (b"", b"") if call is None else (codec_code(), _request(call))
        with contextlib.ExitStack() as stack:
            report_file = stack.enter_context(memory_file())
            told = {"report": str(report_file), "as_main": str(int(as_main)), "codec_bytes": str(len(codec))}
            order = Order(
                role=Role.PROGRAM,
                limits=limits,
                told=told,
                inherited=(report_file,),
                program=_encoded(program),
                nonce=nonce,
                request=codec + request,
                stdin=stdin,
            )
            running = self._launcher.start(order, stack)
            is_late = not has_ended(running.process.pid, limits.wall_s)
            execution = self._launcher.end(running, limits)
            report = content_of(report_file, limits.output_bytes + _EXTRA_BYTES)
            is_long = running.printed() > limits.output_bytes
            if is_long or len(report) == limits.output_bytes + _EXTRA_BYTES:
                return _with_too_much_output(execution, limits)
            if is_late:
                return _late(execution, limits)
        return _judged(execution, report, nonce)

    def examine(self, program: str, tests: OutsideTests, *, limits: Limits | None = None) -> Execution:
        """See ``Sandbox.examine``."""
        limits = limits or Limits()
        for is_last in (False, True):
            try:
                with self._examiners.lent(limits) as examiner:
                    return self._examined(program, tests, limits, examiner)
            except ExaminerLostError as error:
                if self._launcher.is_closed:
                    raise SandboxError("sandbox: closed") from error
                if is_last:
                    raise SandboxError("sandbox: the process that runs tests has died, twice") from error
            finally:
                if self._launcher.is_closed:
                    self._examiners.release()
        raise AssertionError

    def _examined(self, program: str, tests: OutsideTests, limits: Limits, examiner: Examiner) -> Execution:
        """Run a program while its test asks for it."""
        verdict, is_late, is_long = None, False, False
        with contextlib.ExitStack() as stack:
            stack.callback(examiner.give_up)
            examiner.begin(tests, math.ceil(limits.wall_s) + 1)
            questions, answers = stack.enter_context(Pipe()), stack.enter_context(Pipe())
            order = Order(
                role=Role.CANDIDATE,
                limits=limits,
                told={"incoming": str(questions.reading), "outgoing": str(answers.writing)},
                inherited=(questions.reading, answers.writing),
                program=_encoded(program),
            )
            running = self._launcher.start(order, stack)
            deadline = time.monotonic() + limits.wall_s
            questions.close(questions.reading)
            answers.close(answers.writing)
            try:
                channel = Channel(answers.reading, questions.writing)
                verdict = converse(channel, examiner, deadline, limits.output_bytes)
                is_late = verdict is None and not has_ended(running.process.pid, deadline - time.monotonic())
            except TooLateError:
                is_late = True
            except TooLongError:
                is_long = True
            execution = self._launcher.end(running, limits)
            if is_long or running.printed() > limits.output_bytes:
                return _with_too_much_output(execution, limits)
        if is_late:
            return _late(execution, limits)
        return (
            _left(execution) if verdict is None else replace(execution, verdict=verdict[0], detail=verdict[1])
        )

    def _start_examiner(self, limits: Limits, stack: contextlib.ExitStack) -> Examiner:
        """Start a process that runs tests; the stack ends it."""
        jobs, replies = stack.enter_context(Pipe()), stack.enter_context(Pipe())
        order = Order(
            role=Role.EXAMINER,
            limits=limits,
            told={"incoming": str(jobs.reading), "outgoing": str(replies.writing), "cpu_s": "0"},
            inherited=(jobs.reading, replies.writing),
        )
        self._launcher.start(order, stack)
        jobs.close(jobs.reading)
        replies.close(replies.writing)
        return Examiner(Channel(replies.reading, jobs.writing))

    def release(self) -> None:
        """See ``Sandbox.release``."""
        self._examiners.release()

    def close(self) -> None:
        """See ``Sandbox.close``."""
        self._launcher.close()
        self._examiners.release()


def python_options() -> list[str]:
    """Python's arguments: no environment but the hash seed, no site packages, nothing written, UTF-8.

    Integers may have any number of digits, as in other judges: it is the time limit that bounds them.
    """
    return ["-s", "-S", "-P", "-B", "-X", "utf8", "-X", "int_max_str_digits=0", "-c", LAUNCHER, "{code}"]


def _request(call: Call) -> bytes:
    """What the harness is to call."""
    try:
        return encode([call.entry_point, call.args]).encode()
    except NoValueError as error:
        raise ConfigError.of("args", got=error, expected="JSON values, also tuples, sets, bytes") from None


def _encoded(program: str) -> bytes:
    return program.encode("utf-8", "surrogatepass")


def _with_too_much_output(execution: Execution, limits: Limits) -> Execution:
    detail = f"more than {limits.output_bytes} bytes of output"
    return replace(execution, verdict=Verdict.OUTPUT_LIMIT, detail=detail)


def _late(execution: Execution, limits: Limits) -> Execution:
    return replace(execution, verdict=Verdict.TIMEOUT, detail=f"not done after {limits.wall_s:g} s")


def _judged(execution: Execution, report: bytes, nonce: bytes) -> Execution:
    """``execution`` with the verdict of the harness, or of how the process ended without it."""
    lines = report.removeprefix(nonce).decode("utf-8", "replace").split("\n", 2)
    if report.startswith(nonce) and len(lines) == 3 and lines[0] in VERDICTS:
        verdict, detail, value = lines
        if verdict != Verdict.PASSED or execution.exit_code == 0:
            return replace(execution, verdict=VERDICTS[verdict], detail=one_line(detail), value=value or None)
    return _left(execution)


def _left(execution: Execution) -> Execution:
    """``execution`` with the verdict of how its process ended, without saying why."""
    if execution.exit_code >= 0:
        return replace(execution, detail=f"left before its end, exit status {execution.exit_code}")
    name = signal.Signals(-execution.exit_code).name
    verdict_of = {"SIGSYS": Verdict.FORBIDDEN, "SIGXCPU": Verdict.TIMEOUT}
    return replace(execution, verdict=verdict_of.get(name, Verdict.RUNTIME_ERROR), detail=f"killed by {name}")
