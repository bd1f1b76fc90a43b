"""Where a completion ends: end-of-sequence, stop tokens, stop strings across token borders, length."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from treeshare.sampling.params import SamplingParams

_INCOMPLETE = "\ufffd"

_MARGIN = 8
"""Characters by which the window's first token, decoded without those before it, may differ: a space is
dropped, a character cut."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a completion ended.

    Attributes:
        finish_reason: ``stop`` or ``length``.
        stop_reason: The stop string or stop token id; None at ``length`` and at end-of-sequence, be it a stop
            token or not.
        text: Decoded, cut at the stop string.
    """

    finish_reason: str
    stop_reason: int | str | None
    text: str


class StopChecker:
    """Watches one completion's tokens as they come.

    A stop string ends the completion at the first token with which the text of all tokens, decoded together,
    holds it, wherever tokens begin and end. To find it, a window of the last few tokens is decoded, and all
    tokens only when the window holds a stop string. Without stop strings nothing is decoded before the end.

    Args:
        params: Stop strings, stop tokens, lengths.
        max_tokens: Maximum number of tokens, not above ``params.max_tokens``.
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
        self._overlap = max(map(len, self._stops), default=0) + _MARGIN
        self._decode = decode
        # The window is tokens [start, now). Those in [start, middle) have num_chars characters, no fewer than
        # the overlap, so a stop string that the next token completes begins after start. start and middle lie
        # between whole characters.
        self._start = 0
        self._middle = 0
        self._num_chars = 0

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
        if len(token_ids) > self._params.min_tokens:
            if token in self._stop_ids or token in self._eos:
                reason = None if token in self._eos else token
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
        """Whether the text of the latest tokens holds a stop string."""
        assert self._decode is not None, "stop strings need a tokenizer"
        text = self._decode(token_ids[self._start :])
        if len(text) - self._num_chars >= self._overlap and not text.endswith(_INCOMPLETE):
            self._start, self._middle = self._middle, len(token_ids)
            self._num_chars = len(self._decode(token_ids[self._start : self._middle]))
        return any(stop in text for stop in self._stops)

    def _ending(self, finish_reason: str, stop_reason: int | None, token_ids: Sequence[int]) -> Ending:
        """The final text, cut at the first stop string that the first ``min_tokens`` tokens do not hold."""
        if self._decode is None:
            return Ending(finish_reason, stop_reason, "")
        text = self._decode(token_ids)
        early = ""
        if self._stops and self._params.min_tokens:
            early = self._decode(token_ids[: self._params.min_tokens])
        found = [
            (place, stop)
            for stop in self._stops
            for place in _places(text, stop)
            if not early.startswith(stop, place)
        ]
        if not found:
            return Ending(finish_reason, stop_reason, text)
        place, stop = min(found)
        end = place + len(stop) if self._params.include_stop_str_in_output else place
        return Ending("stop", stop, text[:end])


def _places(text: str, stop: str) -> Iterator[int]:
    """Where ``stop`` begins in ``text``, ascending."""
    place = text.find(stop)
    while place >= 0:
        yield place
        place = text.find(stop, place + 1)
