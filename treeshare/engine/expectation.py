"""What completions are expected to need, estimated from recent ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from treeshare.engine.sequence import Sequence
    from treeshare.kv import PageTables

PRIOR_COMPLETIONS = 8
"""Completions of maximum length that a mean length counts besides those that have ended."""

HORIZONS = (16, 256)
"""Latest completions over which the means of lengths are taken, earlier ones fading. The longer horizon knows
the mean well, the shorter one soon sees that completions have become longer."""

STEP_WEIGHT = 0.05
"""Weight of a step in the mean number of rows per completion."""


class _MeanLength:
    """The mean length of the latest completions, by exponential forgetting.

    Args:
        horizon: Completions whose weight is kept.
    """

    def __init__(self, horizon: int) -> None:
        self._horizon = horizon
        self._seen = self._tokens = 0.0
        self._prior = float(PRIOR_COMPLETIONS)

    def note(self, num_tokens: int) -> None:
        """A completion of ``num_tokens`` has ended."""
        kept = min(1.0, (self._horizon - 1) / (self._seen + self._prior))
        self._prior *= kept
        self._seen = self._seen * kept + 1
        self._tokens = self._tokens * kept + num_tokens

    def given(self, max_tokens: int) -> float:
        """The mean if the completions known beforehand have ``max_tokens``."""
        return (self._tokens + self._prior * max_tokens) / (self._seen + self._prior)


class Expectation:
    """How long completions get, how many of them share a row, and the bytes of pages that follow from it.

    Args:
        tables: Says what pages take.

    Attributes:
        rows_per_completion: Mean over recent steps; 1 where no completions share a row.
    """

    def __init__(self, tables: PageTables) -> None:
        self.rows_per_completion = 1.0
        self._tables = tables
        self._means = [_MeanLength(horizon) for horizon in HORIZONS]

    def note_end(self, num_tokens: int) -> None:
        """A completion of ``num_tokens`` has ended."""
        for mean in self._means:
            mean.note(num_tokens)

    def note_rows(self, num_rows: int, num_completions: int) -> None:
        """A step had ``num_completions`` on ``num_rows`` rows; at least one each."""
        self.rows_per_completion += STEP_WEIGHT * (num_rows / num_completions - self.rows_per_completion)

    def tokens(self, max_tokens: int) -> int:
        """Expected length of a completion that ends after ``max_tokens`` tokens or earlier.

        The larger of the means: too short an expectation costs rows that are computed again, too long a one
        only leaves some memory unused.
        """
        return min(max_tokens, round(max(mean.given(max_tokens) for mean in self._means)))

    def rows(self, num_completions: int) -> int:
        """Expected rows of completions that start on one row."""
        return max(round(num_completions * self.rows_per_completion), 1)

    def page_bytes(self, sequence: Sequence) -> int:
        """Expected bytes of a completion's pages: by the mean length, and at least what it needs next."""
        max_tokens = sequence.live.max_new_tokens
        num_tokens = max(self.tokens(max_tokens), len(sequence.token_ids) + 2)
        return completion_bytes(min(max_tokens, num_tokens), self._tables)

    def missing_bytes(self, sequences: Iterable[Sequence]) -> int:
        """Bytes of pages that sequences with a row are expected to need beyond those they hold."""
        missing = 0
        for sequence in sequences:
            held = 0 if sequence.pages is None else self._tables.bytes_in(sequence.pages)
            missing += self.rows(len(sequence.completions)) * max(held, self.page_bytes(sequence)) - held
        return missing


def completion_bytes(num_tokens: int, tables: PageTables) -> int:
    """Bytes of the pages of a completion of ``num_tokens``; the last token generated needs no KV."""
    return tables.bytes_of(num_tokens - 1)
