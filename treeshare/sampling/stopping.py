"""Where a completion ends: end-of-sequence, stop tokens, stop strings across token borders, length."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treeshare.sampling.spelling import HiddenToken, Spelling
from treeshare.text import GrowingText

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from treeshare.sampling.params import SamplingParams
    from treeshare.text import Continuation

    Criterion = Callable[[Sequence[int]], bool]


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
    """Watches one completion's tokens as they come: where it ends, and what text is certain until then.

    A stop string ends the completion at the first token with which the text holds it, wherever tokens begin
    and end. It may be, or hold, the spelling of special tokens that the text leaves out: then it is looked
    for in the text with these tokens put in. To find it, the end of the text is searched, and all of it only
    when the end holds a stop string. Without stop strings nothing is decoded before the end, unless ``take``
    asks.

    Args:
        params: Stop strings, stop tokens, lengths.
        max_tokens: Maximum number of tokens, not above ``params.max_tokens``.
        eos_token_ids: The model's end-of-sequence tokens.
        continuation: The text of the prompt's completions; None without a tokenizer.
        criterion: Ends the completion at the token with which it returns True, too.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        max_tokens: int,
        eos_token_ids: frozenset[int],
        continuation: Continuation | None,
        criterion: Criterion | None = None,
    ) -> None:
        self._params = params
        self._max_tokens = max_tokens
        self._num_early = params.min_tokens  # tokens that cannot end it
        self._eos = frozenset() if params.ignore_eos else eos_token_ids
        self._stop_ids = frozenset(params.stop_ids)
        self._stops = params.stop_strings
        self._criterion = criterion
        assert continuation is not None or not self._stops, "stop strings need a tokenizer"
        self._continuation = continuation
        self._text: GrowingText | None = None
        self._num_read = self._num_taken = 0
        # Of the tokens whose spelling is in a stop string but not in the text: all, and those seen.
        self._spellings = continuation.hidden_in(self._stops) if continuation and self._stops else {}
        self._mixed = [s for s in self._stops if any(part in s for part in self._spellings.values())]
        self._hidden: list[HiddenToken] = []

    def fork(self) -> StopChecker:
        """A checker that continues from the same tokens."""
        other = copy.copy(self)
        other._text = self._text and self._text.fork()
        other._hidden = list(self._hidden)
        return other

    @property
    def begins_text(self) -> bool:
        """Whether nothing stands before the completion's text."""
        return self._continuation is not None and self._continuation.begins_text

    def check(self, token_ids: Sequence[int], *, is_complete: bool = False) -> Ending | None:
        """Look at the completion after its latest token.

        Args:
            token_ids: All tokens generated, one more than at the last call.
            is_complete: Whether the completion's grammar lets nothing follow: that ends it, even among the
                tokens that cannot.

        Returns:
            How it ended, or None if it continues.
        """
        token = token_ids[-1]
        saw_stop = bool(self._stops) and self._saw_stop(token_ids)
        if len(token_ids) > self._num_early:
            if token in self._stop_ids or token in self._eos:
                reason = None if token in self._eos else token
                return self._ending("stop", reason, token_ids)
            if saw_stop:
                ending = self._ending("stop", None, token_ids)
                if ending.stop_reason is not None:
                    return ending
            if self._criterion is not None and self._criterion(token_ids):
                return self._ending("stop", None, token_ids)
        if is_complete:
            return self._ending("stop", None, token_ids)
        if len(token_ids) >= self._max_tokens:
            return self._ending("length", None, token_ids)
        return None

    def take(self, token_ids: Sequence[int]) -> str:
        """The text that has become certain since the last call: no later token and no stop string changes it.

        All pieces and what the ending's text has after them are the ending's text.

        Args:
            token_ids: As ``check`` had them last.
        """
        if self._continuation is None:
            return ""
        text = self._read(token_ids)
        certain, start = text.certain, text.certain_start
        end = start + len(certain) - (0 if self._params.include_stop_str_in_output else self._num_held(text))
        begin, self._num_taken = self._num_taken, max(self._num_taken, end)
        if begin >= end:
            return ""
        if begin < start:  # nothing was taken for long
            return self._continuation.text(token_ids)[begin:end]
        return certain[begin - start : end - start]

    @property
    def num_certain(self) -> int:
        """Characters that no later token changes; a stop string may still cut them. Needs ``take``."""
        return 0 if self._text is None else self._text.num_certain

    def _read(self, token_ids: Sequence[int]) -> GrowingText:
        """The text so far; notes the hidden tokens."""
        assert self._continuation is not None
        if self._text is None:
            self._text = GrowingText(self._continuation, max(map(len, self._stops), default=0))
        text = self._text
        while self._num_read < len(token_ids):
            token, begin = token_ids[self._num_read], text.num_chars
            text.push(token)
            if token in self._spellings:
                spelling = self._spellings[token]
                self._hidden.append(HiddenToken(self._num_read, begin, text.num_chars, spelling))
            self._num_read += 1
        return text

    def _saw_stop(self, token_ids: Sequence[int]) -> bool:
        """Whether the end of the text holds a stop string."""
        text = self._read(token_ids)
        recent = text.recent
        if any(stop in recent for stop in self._stops):
            return True
        start = text.num_chars - len(recent)
        if not self._hidden or self._hidden[-1].end < start:
            return False
        spelled = Spelling(recent, start, self._hidden)
        return any(stop in spelled.text for stop in self._mixed)

    def _num_held(self, text: GrowingText) -> int:
        """Characters at the end of what is certain with which a stop string may begin."""
        certain, start = text.certain, text.certain_start
        held = _num_begun(certain, self._stops)
        if self._hidden and self._hidden[-1].end >= start:
            end = start + len(certain)
            spelled = Spelling(certain, start, [token for token in self._hidden if token.begin <= end])
            begun = _num_begun(spelled.text, self._mixed)
            held = max(held, end - spelled.place(len(spelled.text) - begun)) if begun else held
        return held

    def _ending(self, finish_reason: str, stop_reason: int | None, token_ids: Sequence[int]) -> Ending:
        """The final text, cut at the first stop string that the tokens that cannot end it do not hold.

        Other than a stop string, a token that ends the completion is left out, unless it is asked for.
        """
        if self._continuation is None:
            return Ending(finish_reason, stop_reason, "")
        params, last = self._params, token_ids[-1]
        is_token = last in self._eos or last in self._stop_ids
        is_token = is_token and len(token_ids) > self._num_early
        kept = token_ids[:-1] if is_token and not params.include_stop_str_in_output else token_ids
        text = self._continuation.text(kept)
        found = [] if not self._stops else self._found(text, token_ids)
        if not found or (is_token and min(found)[0] >= len(text)):
            return Ending(finish_reason, stop_reason, text)
        place, _, stop = min(found)
        return Ending("stop", stop, text[:place] + (stop if params.include_stop_str_in_output else ""))

    def _found(self, text: str, token_ids: Sequence[int]) -> list[tuple[int, int, str]]:
        """Where in ``text`` stop strings begin that may end it; at one place hidden tokens' first."""
        assert self._continuation is not None
        early = self._continuation.text(token_ids[: self._num_early]) if self._num_early else ""
        found = [
            (place, 1, stop)
            for stop in self._stops
            for place in _places(text, stop)
            if not early.startswith(stop, place)
        ]
        if self._hidden:
            spelled = Spelling(text, 0, self._hidden)
            early_tokens = [token for token in self._hidden if token.index < self._num_early]
            early = Spelling(early, 0, early_tokens).text
            found += [
                (spelled.place(place), 0, stop)
                for stop in self._mixed
                for place in _places(spelled.text, stop)
                if not early.startswith(stop, place)
            ]
        return found


def _places(text: str, stop: str) -> Iterator[int]:
    """Where ``stop`` begins in ``text``, ascending."""
    place = text.find(stop)
    while place >= 0:
        yield place
        place = text.find(stop, place + 1)


def _num_begun(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of ``text`` with which one of ``stops`` begins, and does not end."""
    return max(
        (
            size
            for stop in stops
            for size in range(1, min(len(stop), len(text) + 1))
            if text[-1] == stop[size - 1] and text.endswith(stop[:size])
        ),
        default=0,
    )
