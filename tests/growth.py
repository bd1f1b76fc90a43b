"""How the time of a reader grows with its text: processor time at one size, and at four times that size.

A linear reader takes four times as long, a quadratic one sixteen times. What other programs do meanwhile does
not count, but for what they take away from caches; what is found to grow is measured again.
"""

from __future__ import annotations

import gc
import signal
import time
from contextlib import contextmanager

FACTOR = 4
MAX_GROWTH = 9.0
"""Between 4, linear, and 16, quadratic."""
LIMIT_S = 1.0


class TooLongError(Exception):
    """A text took more time than any linear reader takes."""


@contextmanager
def at_most(seconds):
    def stop(*_):
        raise TooLongError

    previous = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def seconds_of(read, text, times) -> float:
    found = []
    gc.disable()  # its time depends on all objects there are
    try:
        for _ in range(times):
            started = time.thread_time()
            read(text)
            found.append(time.thread_time() - started)
    finally:
        gc.enable()
    return min(found)


def growth(read, before, pump, size=2000, negligible_s=0.0008, limit_s=LIMIT_S) -> float:
    """How many times as long ``FACTOR`` times the text takes; 0 where it takes no time to speak of.

    Args:
        read: Takes a text.
        before: How the text begins.
        pump: What it goes on with, again and again.
        size: Characters of the shorter text.
        negligible_s: A quadratic reader takes several times that for ``size`` characters.
        limit_s: Of processor time; what takes longer is said to grow without an end.
    """

    def text(length):
        return before + pump * (length // len(pump)) + "\0"

    try:
        with at_most(limit_s):
            if seconds_of(read, text(size), 1) < negligible_s:
                return 0.0
            for times in (1, 3):  # again, if something else was in the way
                found = seconds_of(read, text(FACTOR * size), times) / seconds_of(read, text(size), times)
                if found < MAX_GROWTH:
                    break
            return found
    except TooLongError:
        return float("inf")
