"""The processes that run tests: as many as are at work at once, kept for the next tests."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from treeshare.evals.sandbox.base import Limits
    from treeshare.evals.sandbox.conversation import Examiner


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """An examiner, what ends it, and the thread that started it: it dies with that thread."""

    examiner: Examiner
    stack: contextlib.ExitStack
    limits: Limits
    thread: threading.Thread


class Examiners:
    """Examiners by the limits that they were started with.

    Args:
        start: Starts one, which its stack ends.
    """

    def __init__(self, start: Callable[[Limits, contextlib.ExitStack], Examiner]) -> None:
        self._start = start
        self._idle: list[_Kept] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lent(self, limits: Limits) -> Iterator[Examiner]:
        """An examiner for one test; ended afterwards if it is not fit for another one.

        Raises:
            SandboxError: If none can be started.
        """
        kept = self._taken(limits) or self._started(limits)
        is_done = False
        try:
            yield kept.examiner
            is_done = True
        finally:
            if is_done and kept.examiner.is_fit:
                with self._lock:
                    self._idle.append(kept)
            else:
                kept.stack.close()

    def release(self) -> None:
        """End those that are not at work."""
        with self._lock:
            idle, self._idle = self._idle, []
        for kept in idle:
            kept.stack.close()

    def _taken(self, limits: Limits) -> _Kept | None:
        """An idle one that will live, if there is one; those that will not are ended."""
        with self._lock:
            ended = [kept for kept in self._idle if not kept.thread.is_alive()]
            idle = [kept for kept in self._idle if kept.thread.is_alive()]
            found = next((kept for kept in reversed(idle) if kept.limits == limits), None)
            self._idle = [kept for kept in idle if kept is not found]
        for kept in ended:
            kept.stack.close()
        return found

    def _started(self, limits: Limits) -> _Kept:
        with contextlib.ExitStack() as stack:
            examiner = self._start(limits, stack)
            return _Kept(
                examiner=examiner, stack=stack.pop_all(), limits=limits, thread=threading.current_thread()
            )
