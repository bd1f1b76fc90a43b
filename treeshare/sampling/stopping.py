"""Where a completion ends: end-of-sequence, stop tokens, stop strings across token borders, length."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from treeshare.sampling.params import SamplingParams

_INCOMPLETE = "\ufffd"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a completion ended.

    Attributes:
        finish_reason: ``stop`` or ``length``.
        stop_reason: The stop string or stop token id; None at end-of-sequence and at ``length``.
        text: Decoded, cut at the stop string.
    """

    finish_reason: str
    stop_reason: int | str | None
    text: str


class StopChecker:
    """Watches one completion's tokens as they come.

    Decodes only while there are stop strings, and then only the last few tokens: a token's text is taken when
    it no longer ends in an incomplete character. The final text is that of all tokens decoded together.

    Args:
        params: Stop strings, stop tokens, lengths.
        max_tokens: Most tokens; at most ``params.max_tokens``.
        eos_token_ids: The model's end-of-sequence tokens.
        decode: Token ids to text, special tokens already handled as ``params`` asks; None without a
            tokenizer.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        max_tokens: int,
        eos_token_ids: frozenset[int],
        decode: Callable[[Sequence[int]], str] | None,
    ) -> None:
        self._params = params
        self._max_tokens = max_tokens
        self._eos = frozenset() if params.ignore_eos else eos_token_ids
        self._stop_ids = frozenset(params.stop_ids)
        self._stops = params.stop_strings
        self._longest = max(map(len, self._stops), default=0)
        self._decode = decode
        self._tail = ""
        self._window_start = 0
        self._num_read = 0

    def fork(self) -> StopChecker:
        """A checker that goes on from the same tokens."""
        return copy.copy(self)

    def check(self, token_ids: Sequence[int]) -> Ending | None:
        """Look at the completion after its latest token.

        Args:
            token_ids: All tokens generated, one more than at the last call.

        Returns:
            How it ended, or None if it goes on.
        """
        token = token_ids[-1]
        saw_stop = bool(self._stops) and self._saw_stop(token_ids)
        if len(token_ids) >= self._params.min_tokens:
            if token in self._stop_ids or token in self._eos:
                reason = token if token in self._stop_ids else None
                kept = token_ids if self._params.include_stop_str_in_output else token_ids[:-1]
                return self._ending("stop", reason, kept)
            if saw_stop:
                ending = self._ending("stop", None, token_ids)
                if ending.stop_reason is not None:
                    return ending
        if len(token_ids) >= self._max_tokens:
            return self._ending("length", None, token_ids)
        return None

    def _saw_stop(self, token_ids: Sequence[int]) -> bool:
        """Whether the text of the latest tokens completes a stop string."""
        assert self._decode is not None, "stop strings need a tokenizer"
        read = self._decode(token_ids[self._window_start : self._num_read])
        text = self._decode(token_ids[self._window_start :])
        if len(text) <= len(read) or text.endswith(_INCOMPLETE):
            return False
        self._window_start, self._num_read = self._num_read, len(token_ids)
        seen = self._tail + text[len(read) :]
        self._tail = seen[max(len(seen) - self._longest + 1, 0) :]
        return any(stop in seen for stop in self._stops)

    def _ending(self, finish_reason: str, stop_reason: int | None, token_ids: Sequence[int]) -> Ending:
        """The final text, cut at the first stop string that ends after ``min_tokens``."""
        if self._decode is None:
            return Ending(finish_reason, stop_reason, "")
        text = self._decode(token_ids)
        num_kept = len(self._decode(token_ids[: max(self._params.min_tokens - 1, 0)]))
        found = [(text.find(stop, max(num_kept - len(stop) + 1, 0)), stop) for stop in self._stops]
        place, stop = min(((at, stop) for at, stop in found if at >= 0), default=(-1, ""))
        if place < 0:
            return Ending(finish_reason, stop_reason, text)
        end = place + len(stop) if self._params.include_stop_str_in_output else place
        return Ending("stop", stop, text[:end])
