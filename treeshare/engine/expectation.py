"""What completions are expected to need, going by those of late."""

from __future__ import annotations

PRIOR_COMPLETIONS = 8
"""Completions of full length that the expected length counts besides those seen."""

SPREAD_WEIGHT = 0.05
"""Weight of a step in the mean number of rows per completion."""


class Expectation:
    """How long completions get, and how many of them share a row.

    Attributes:
        spread: Rows per running completion; 1 where none share.
    """

    def __init__(self) -> None:
        self.spread = 1.0
        self._num_seen = self._seen_tokens = 0

    def note_end(self, num_tokens: int) -> None:
        """A completion of ``num_tokens`` has ended."""
        self._num_seen += 1
        self._seen_tokens += num_tokens

    def note_rows(self, num_rows: int, num_completions: int) -> None:
        """In a step ``num_completions`` took ``num_rows``, at least one."""
        self.spread += SPREAD_WEIGHT * (num_rows / num_completions - self.spread)

    def tokens(self, most: int) -> int:
        """Length of a completion that gets no longer than ``most``."""
        mean = (self._seen_tokens + PRIOR_COMPLETIONS * most) / (self._num_seen + PRIOR_COMPLETIONS)
        return min(most, round(mean))

    def rows(self, num_completions: int) -> int:
        """Rows of completions that start as one."""
        return max(round(num_completions * self.spread), 1)
