"""Where an answer ends, by the rule of lm-eval's ``hf`` model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUM_MORE = 2
"""Tokens that are searched beyond as many as a stop string itself is encoded to."""

_INCOMPLETE = "\ufffd"
"""Where bytes are no characters, those of fewer tokens may be."""


class HarnessStop:
    """Ends an answer at the token with which its last few tokens, decoded alone, hold a stop string.

    As lm-eval's ``MultiTokenEOSCriteria`` in a batch of one: special tokens are spelled out here, though the
    answer leaves them out, and a stop string that the model spells with many more tokens is not seen.

    Args:
        tokenizer: The model's.
        until: The stop strings.
    """

    def __init__(self, tokenizer: Any, until: Sequence[str]) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        self._stops = [
            (len(tokenizer.encode(stop, add_special_tokens=False)) + _NUM_MORE, stop) for stop in until
        ]
        self._longest = max((size for size, _ in self._stops), default=0)

    def __call__(self, token_ids: Sequence[int]) -> bool:
        """Whether the answer ends with the last of these tokens."""
        if not self._stops:
            return False
        text = self._tokenizer.decode(token_ids[-self._longest :])
        return any(
            stop in self._tokenizer.decode(token_ids[-size:])
            for size, stop in self._stops
            if stop in text or _INCOMPLETE in text  # else its fewer tokens cannot hold it
        )
