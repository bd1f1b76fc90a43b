"""The known log-probabilities of a node's tokens, and who asks for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from treeshare.sampling.sampler import TokenLogprob

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PromptLogprobs = list[list[TokenLogprob] | None]
"""Per token of a prompt itself and the most likely ones at its place; None for the first."""

Top = tuple["NDArray[np.int64]", "NDArray[np.float32]"]
"""The most likely tokens of a row, ties by id, and their log-probabilities."""


@dataclass(eq=False, slots=True)
class NodeScores:
    """What is known of the log-probabilities that a node's rows give.

    Attributes:
        num_top: Likeliest tokens that are kept of each row.
        wanted: By who asks, the token that follows the node in its prompt; None where the prompt ends.
        chosen: Of the first rows, each next token's log-probability and rank.
        top: Of the same rows, the most likely tokens.
        after: The same as ``chosen`` for the last row, by next token.
        after_top: The most likely tokens of the last row.
    """

    num_top: int
    wanted: dict[object, int | None] = field(default_factory=dict)
    chosen: list[tuple[float, int]] = field(default_factory=list)
    top: list[Top] = field(default_factory=list)
    after: dict[int, tuple[float, int]] = field(default_factory=dict)
    after_top: Top | None = None

    def covers(self, num_top: int) -> bool:
        """Whether so many most likely tokens, -1 for all, are among those that are kept."""
        return self.num_top < 0 or 0 <= num_top <= self.num_top

    def lacks_from(self, num_tokens: int) -> int | None:
        """The first row of ``num_tokens`` that must be computed (again); None if all is known."""
        if not self.wanted:
            return None
        if len(self.chosen) < num_tokens - 1:
            return len(self.chosen)
        tokens = {token for token in self.wanted.values() if token is not None}
        return num_tokens - 1 if tokens - self.after.keys() else None

    def rows(self, num_tokens: int, start: int, end: int) -> range:
        """The rows in ``[start, end)`` of ``num_tokens`` that must be computed (again)."""
        first = self.lacks_from(num_tokens)
        if first is None:
            return range(0)
        has_next = any(token is not None for token in self.wanted.values())
        return range(max(start, first), min(end, num_tokens - (not has_next)))
