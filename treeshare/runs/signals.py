"""Delays signal handlers, so that Ctrl-C does not interrupt the writing of a line."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SignalsHeld:
    """A context in which Python's signal handlers do not run; they run, in order of arrival, when it ends.

    Only the main thread runs signal handlers, so on other threads this does nothing. Signals that have no
    Python handler, such as ``SIGKILL``, are not delayed. Keep the body short. Tested by
    ``tests/runs/test_signals.py``.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._arrived: list[tuple[Any, int, FrameType | None]] = []

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            for number in _HELD:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._hold)
        except BaseException:  # a handler that was not replaced yet raised: the body does not run
            self._restore()
            raise

    def __exit__(self, *_: object) -> None:
        self._restore()
        for handler, number, frame in self._arrived:
            handler(number, frame)

    def _restore(self) -> None:
        try:
            for number in list(self._handlers):
                signal.signal(number, self._handlers[number])
                del self._handlers[number]
        finally:
            if self._handlers:  # a handler that was already restored raised: restore the others
                self._restore()

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self._arrived.append((self._handlers[number], number, frame))
