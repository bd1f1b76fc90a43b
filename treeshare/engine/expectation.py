"""What completions are expected to need, judging by recent ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from treeshare.engine.sequence import Sequence

PRIOR_COMPLETIONS = 8
"""Completions of maximum length that the mean length counts besides those that have ended."""

STEP_WEIGHT = 0.05
"""Weight of a step in the mean number of rows per completion."""


class Expectation:
    """How long completions get, how many of them share a row, and the pages that follow from it.

    Args:
        page_size: Tokens of a page.

    Attributes:
        rows_per_completion: Mean over recent steps; 1 where no completions share a row.
    """

    def __init__(self, page_size: int) -> None:
        self.rows_per_completion = 1.0
        self._page_size = page_size
        self._num_seen = self._seen_tokens = 0

    def note_end(self, num_tokens: int) -> None:
        """A completion of ``num_tokens`` has ended."""
        self._num_seen += 1
        self._seen_tokens += num_tokens

    def note_rows(self, num_rows: int, num_completions: int) -> None:
        """A step had ``num_completions`` on ``num_rows`` rows; at least one each."""
        self.rows_per_completion += STEP_WEIGHT * (num_rows / num_completions - self.rows_per_completion)

    def tokens(self, max_tokens: int) -> int:
        """Expected length of a completion that ends after ``max_tokens`` tokens or earlier."""
        mean = (self._seen_tokens + PRIOR_COMPLETIONS * max_tokens) / (self._num_seen + PRIOR_COMPLETIONS)
        return min(max_tokens, round(mean))

    def rows(self, num_completions: int) -> int:
        """Expected rows of completions that start on one row."""
        return max(round(num_completions * self.rows_per_completion), 1)

    def pages(self, sequence: Sequence) -> int:
        """Expected pages of each of its completions: by the mean length, and at least what it needs next."""
        max_tokens = sequence.live.max_new_tokens
        num_tokens = max(self.tokens(max_tokens), len(sequence.token_ids) + 2)
        return num_pages(min(max_tokens, num_tokens), self._page_size)

    def missing_pages(self, sequences: Iterable[Sequence]) -> int:
        """Pages that sequences with a row are expected to need beyond those they hold."""
        return sum(
            self.rows(len(sequence.completions)) * max(len(sequence.pages), self.pages(sequence))
            - len(sequence.pages)
            for sequence in sequences
        )


def num_pages(num_tokens: int, page_size: int) -> int:
    """Private pages of a completion of ``num_tokens``; the last token generated needs no KV."""
    return -(-(num_tokens - 1) // page_size)
