"""How many prompt tokens a step takes, so that no step is much longer than the median one."""

from __future__ import annotations

import statistics
from collections import deque

from treeshare.config import MAX_PREFILL_ROWS

MIN_LIVE_ROWS = 32
"""A step of so many rows takes less than twice as long as a step of one: reading the weights dominates."""

MAX_OF_MEDIAN = 1.5
"""Maximum rows of a step over those of the median step. Its time is to stay below twice the median step's;
this is lower than 2, because rows differ in their number of keys."""

WINDOW_STEPS = 256
"""Latest steps over which the median is taken."""


class Pace:
    """Bounds the prompt tokens of a step.

    Requests that all come together compute their prompts in the fewest steps, because nothing waits for a
    token meanwhile. Where requests may come at any time, a step is to stay short: prompt tokens beside
    decoding rows are at most half as many as those, and all rows together at most 1.5 times those of the
    median step; while nothing decodes, 1.5 times the rows that are about to, or ``MIN_LIVE_ROWS``.

    Args:
        chunk: Tokens are taken in multiples of this, and never less.

    Attributes:
        is_live: Whether requests may come at any time.
    """

    def __init__(self, chunk: int) -> None:
        self.is_live = True
        self._chunk = chunk
        self._rows: deque[int] = deque(maxlen=WINDOW_STEPS)

    def note(self, num_rows: int) -> None:
        """A step has computed ``num_rows`` rows, decoding ones and prompt tokens together."""
        if num_rows:
            self._rows.append(num_rows)

    def prompt_rows(self, num_decoding: int, num_starting: int) -> int:
        """Maximum number of prompt tokens of the next step.

        Args:
            num_decoding: Rows that decode in it.
            num_starting: Rows of the completions whose prompts are being computed.
        """
        if not num_decoding:
            if not self.is_live:
                return MAX_PREFILL_ROWS
            return min(self._whole(max(MAX_OF_MEDIAN * num_starting, MIN_LIVE_ROWS)), MAX_PREFILL_ROWS)
        beside = num_decoding / 2
        if self.is_live and self._rows:
            beside = min(beside, MAX_OF_MEDIAN * statistics.median(self._rows) - num_decoding)
        return self._whole(beside)

    def _whole(self, num_tokens: float) -> int:
        """``num_tokens`` down to whole chunks, but at least one chunk."""
        return max(int(num_tokens) // self._chunk, 1) * self._chunk
