"""The progress line on stderr."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.engine.sequence import Request
    from treeshare.runs import CompletionSource

_STDERR = 2


class Progress:
    """A context that shows the progress of the work in a line on stderr.

    On a terminal the line is updated twice a second; elsewhere a new line is written every ten seconds. A
    thread writes it to the descriptor, without Python's buffers: so it is updated between completions too,
    and a closed or blocked stderr does not stop the work.

    Args:
        total: Number of things to do; if 0, nothing is shown.
        noun: Their name, in the plural.
    """

    def __init__(self, total: int, noun: str) -> None:
        self.total = total
        self.num_done = 0
        self._noun = noun
        self._started = time.monotonic()
        self._is_over = threading.Event()
        self._is_shown = False
        self._is_terminal = os.isatty(_STDERR) and os.environ.get("TERM") != "dumb"
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def update(self, _: object = None) -> None:
        """Count another thing as done."""
        self.num_done += 1

    @property
    def elapsed_s(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._started

    def facts(self) -> list[str]:
        """What the line shows besides the count."""
        return []

    def left_s(self) -> float | None:
        """Estimated seconds left, or None before there is an estimate."""
        return self.elapsed_s / self.num_done * (self.total - self.num_done) if self.num_done else None

    def line(self) -> str:
        """The text of the line."""
        parts = [f"{self._noun}: {self.num_done:,} of {self.total:,}", *self.facts(), _clock(self.elapsed_s)]
        left_s = self.left_s()
        if left_s is not None and self.num_done < self.total:
            parts.append(f"about {_clock(left_s)} left")
        return ", ".join(parts)

    def __enter__(self) -> Self:
        sys.stderr.flush()
        if self.total:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.total:
            return
        self._is_over.set()
        self._thread.join(1.0)
        is_blocked = self._thread.is_alive()  # nobody reads from stderr
        if (kind is None or self._is_shown) and not is_blocked:
            self._write("\n")

    def _refresh(self) -> None:
        while not self._is_over.wait(0.5 if self._is_terminal else 10.0):
            self._write("" if self._is_terminal else "\n")

    def _write(self, end: str) -> None:
        line = self.line()
        self._is_shown = True
        if self._is_terminal:
            line = f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K"
        with contextlib.suppress(OSError):
            os.write(_STDERR, (line + end).encode())


class SamplingProgress(Progress):
    """Progress in completions, with tokens per second."""

    def __init__(self, source: CompletionSource, requests: Sequence[Request]) -> None:
        super().__init__(sum(len(request.completion_indices) for request in requests), "completions")
        self._source = source
        self._max_tokens = max((request.params.max_length for request in requests), default=0)

    def facts(self) -> list[str]:
        """Prompt tokens while prompts are computed, then generated tokens per second."""
        stats = self._source.stats
        if not stats.num_tokens:
            return [f"{stats.prefilled_tokens:,} prompt tokens"]
        return [f"{stats.tokens_per_s:.0f} tokens/s"]

    def left_s(self) -> float | None:
        """Estimated from generated tokens per finished completion.

        Tokens of unfinished completions count too: the completions that finish first are shorter than
        average.
        """
        stats = self._source.stats
        if not stats.tokens_per_s:
            return None
        mean = stats.num_tokens / stats.num_finished if stats.num_finished else self._max_tokens
        mean = min(mean, self._max_tokens)
        return max(self.total * mean - stats.num_tokens, 0) / stats.tokens_per_s


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
