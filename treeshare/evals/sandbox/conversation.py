"""The host between a test and the program that it tests: it passes messages on, and keeps time and sizes.

What a program sends is data for the test; it says nothing to the host but that its module has run, or how
that failed. The verdict comes from the process that runs the test.
"""

from __future__ import annotations

import json
import math
import os
import select
import time
from typing import TYPE_CHECKING

from treeshare.errors import DataError, one_line
from treeshare.evals.sandbox.base import VERDICTS, Verdict
from treeshare.evals.sandbox.descriptors import is_ready

if TYPE_CHECKING:
    from treeshare.evals.sandbox.base import OutsideTests

_LENGTH_BYTES = 4
_MAX_EXAMINERS_BYTES = 1 << 28
_START_S = 30.0
_GIVE_UP_S = 0.5


class TooLateError(Exception):
    """The time is over."""


class EndedError(Exception):
    """The other process has closed its end, or died."""


class TooLongError(Exception):
    """A message is longer than allowed."""


class Channel:
    """Messages to and from a process, each with its length in front.

    Args:
        incoming: Descriptor to read from.
        outgoing: Descriptor to write to.
    """

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(incoming, select.POLLIN)
        os.set_blocking(outgoing, False)

    def read(self, deadline: float, max_bytes: int) -> bytes:
        """The next message.

        Raises:
            TooLateError: If it is not there by ``deadline``, a ``time.monotonic()``.
            EndedError: If there will be none.
            TooLongError: If it is longer than ``max_bytes``.
        """
        size = int.from_bytes(self._taken(_LENGTH_BYTES, deadline), "big")
        if size > max_bytes:
            raise TooLongError
        return self._taken(size, deadline)

    def _taken(self, size: int, deadline: float) -> bytes:
        """That many bytes."""
        while len(self._buffer) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not self._poll.poll(math.ceil(left * 1000)):  # it may come byte by byte
                raise TooLateError
            part = os.read(self._incoming, 1 << 16 if size < 1 << 16 else 1 << 20)
            if not part:
                raise EndedError
            self._buffer += part
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def write(self, content: bytes, deadline: float) -> None:
        """Send a message.

        Raises:
            TooLateError: If it is not taken by ``deadline``.
            EndedError: If nobody will take it.
        """
        left = memoryview(len(content).to_bytes(_LENGTH_BYTES, "big") + content)
        while left:
            try:
                left = left[os.write(self._outgoing, left) :]
            except BlockingIOError:
                if not is_ready(self._outgoing, deadline - time.monotonic(), select.POLLOUT):
                    raise TooLateError from None
            except BrokenPipeError:
                raise EndedError from None


class ExaminerLostError(Exception):
    """The process that runs tests has died; nothing is known of the program."""


class Examiner:
    """A process that runs one test after another, each in a fork of its own.

    Attributes:
        is_fit: Whether it may be used again.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._is_owed_an_end = False
        self._is_running = False
        self.is_fit = True

    def begin(self, tests: OutsideTests, cpu_s: int) -> None:
        """Begin with a test; what it asks for comes by ``read``.

        Raises:
            ExaminerLostError: If the process has died.
        """
        job = {
            "helpers": tests.helpers,
            "tests": tests.source,
            "names": list(tests.names),
            "reference": tests.reference,
            "cpu_s": cpu_s,
        }
        self._is_running = True
        self._write(b"J" + json.dumps(job).encode(), time.monotonic() + _START_S)

    def answer(self, content: bytes, deadline: float) -> None:
        """Give the test what the program has answered.

        Raises:
            ExaminerLostError: If the process has died.
        """
        self._write(b"A" + content, deadline)

    def _write(self, content: bytes, deadline: float) -> None:
        try:
            self._channel.write(content, deadline)
        except EndedError as error:
            self.is_fit = False
            raise ExaminerLostError from error

    def read(self, deadline: float) -> tuple[bytes, bytes]:
        """What the test says next: a kind of one byte, and the rest."""
        while True:
            try:
                frame = self._channel.read(deadline, _MAX_EXAMINERS_BYTES)
            except (EndedError, TooLongError) as error:
                self.is_fit = False
                raise ExaminerLostError from error
            except TooLateError:
                self.is_fit = False
                raise
            kind, content = frame[:1], frame[1:]
            if kind == b"." and self._is_owed_an_end:  # of the test before
                self._is_owed_an_end = False
                continue
            if kind != b"?":
                self._is_running = False
                self._is_owed_an_end = kind != b"."
            return kind, content

    def give_up(self) -> None:
        """End a test that waits for an answer; if it does not end, the process is not fit for another one."""
        if not self._is_running or not self.is_fit:
            return
        deadline = time.monotonic() + _GIVE_UP_S
        try:
            self._write(b"", deadline)
            while self._is_running:
                self.read(deadline)
        except (ExaminerLostError, TooLateError):
            self.is_fit = False


def converse(
    candidate: Channel, examiner: Examiner, deadline: float, max_bytes: int
) -> tuple[Verdict, str] | None:
    """Pass messages on between a program and its test until there is a verdict.

    Args:
        candidate: The program's process.
        examiner: The test's, which has begun.
        deadline: Until when, a ``time.monotonic()``.
        max_bytes: Of a value that the program returns.

    Returns:
        The verdict with one line on it; None if the program's process has ended.

    Raises:
        ExaminerLostError: If the test's process has died.
        TooLateError: If the time is over.
        TooLongError: If a value of the program's is too long.
        DataError: If the test gives the program what cannot travel.
    """
    try:
        ready = candidate.read(deadline, max_bytes)
        if ready != b"ready":
            return verdict_in(ready)
        while True:
            kind, content = examiner.read(deadline)
            if kind == b"+":
                return Verdict.PASSED, ""
            if kind == b"=":
                return verdict_in(content)
            if kind == b"x":
                raise DataError(
                    f"{one_line(content.decode('utf-8', 'replace'))}; leave it beside its program (CodeTask)"
                )
            if kind == b".":
                return Verdict.RUNTIME_ERROR, f"the test's process died of it, exit status {content.decode()}"
            candidate.write(content, deadline)
            examiner.answer(candidate.read(deadline, max_bytes), deadline)
    except EndedError:
        return None
    finally:
        examiner.give_up()


def verdict_in(text: bytes) -> tuple[Verdict, str]:
    """A verdict as a process writes it, with one line on it; never that a program has passed."""
    name, _, detail = text.decode("utf-8", "replace").partition("\n")
    verdict = VERDICTS.get(name, Verdict.RUNTIME_ERROR)
    if verdict is Verdict.PASSED:
        verdict = Verdict.RUNTIME_ERROR
    return verdict, one_line(detail)[:300] or "no reason is known"
