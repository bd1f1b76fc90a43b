"""What completions are expected to need, going by those of late."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from treeshare.engine.sequence import Sequence

PRIOR_COMPLETIONS = 8
"""Completions of full length that the expected length counts besides those seen."""

SPREAD_WEIGHT = 0.05
"""Weight of a step in the mean number of rows per completion."""


class Expectation:
    """How long completions get, how many of them share a row, and the pages that follow from it.

    Args:
        page_size: Tokens of a page.

    Attributes:
        spread: Rows per running completion; 1 where none share.
    """

    def __init__(self, page_size: int) -> None:
        self.spread = 1.0
        self._page_size = page_size
        self._num_seen = self._seen_tokens = 0

    def note_end(self, num_tokens: int) -> None:
        """A completion of ``num_tokens`` has ended."""
        self._num_seen += 1
        self._seen_tokens += num_tokens

    def note_rows(self, num_rows: int, num_completions: int) -> None:
        """In a step ``num_completions`` took ``num_rows``, at least one."""
        self.spread += SPREAD_WEIGHT * (num_rows / num_completions - self.spread)

    def tokens(self, max_tokens: int) -> int:
        """Length of a completion that gets no longer than ``max_tokens``."""
        mean = (self._seen_tokens + PRIOR_COMPLETIONS * max_tokens) / (self._num_seen + PRIOR_COMPLETIONS)
        return min(max_tokens, round(mean))

    def rows(self, num_completions: int) -> int:
        """Rows of completions that start as one."""
        return max(round(num_completions * self.spread), 1)

    def pages(self, sequence: Sequence) -> int:
        """Pages of one of its completions: by the mean length, and at least what it needs next."""
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
