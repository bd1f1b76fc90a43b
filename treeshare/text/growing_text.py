"""The text of a completion while its tokens come, in time linear in its length."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from treeshare.text.detokenizer import INCOMPLETE, len_common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.text.continuation import Continuation

_MARGIN = 8
"""Characters by which a window's beginning, decoded without what is before it, may differ: a space is
dropped, a character cut."""

_NUM_SETTLED = 16
"""New characters after which the window moves on."""

_MAX_BROKEN = 32
"""Tokens without a whole character at their end after which another place is looked for."""

_MAX_BYTES = 3
"""Bytes that may wait for the last one of their character."""


class ByteRun:
    """Byte pieces since the last token that is none: text if all of it is UTF-8, else a mark for each byte.

    Each byte is looked at once, however long the run gets.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._chars: list[str] = []
        self._pending = b""
        self._is_broken = False

    def fork(self) -> ByteRun:
        """A run that continues from the same bytes."""
        other = copy.copy(self)
        other._chars = list(self._chars)
        return other

    def push(self, byte: int) -> None:
        """Take a byte."""
        self.num_bytes += 1
        self._pending += bytes([byte])
        try:
            self._chars += self._pending.decode()
            self._pending = b""
        except UnicodeDecodeError as error:
            self._is_broken |= error.reason != "unexpected end of data"
            self._pending = b"" if self._is_broken else self._pending

    def drop_first(self) -> None:
        """Leave out the first character: a space where a text begins."""
        del self._chars[:1]

    @property
    def is_text(self) -> bool:
        """Whether the bytes so far are whole characters."""
        return not self._pending and not self._is_broken

    @property
    def num_chars(self) -> int:
        """Characters of ``tail``, all of them."""
        return len(self._chars) if self.is_text else self.num_bytes

    def head(self, num_chars: int) -> str:
        """The first characters."""
        if not self.is_text:
            return INCOMPLETE * min(num_chars, self.num_bytes)
        return "".join(self._chars[:num_chars])

    def tail(self, num_chars: int) -> str:
        """The last characters."""
        if not self.is_text:
            return INCOMPLETE * min(num_chars, self.num_bytes)
        return "".join(self._chars[-num_chars:]) if num_chars else ""


class GrowingText:
    """A completion's text, token by token.

    At every token the text is ``Continuation.text`` of all tokens so far; what is ``certain`` of it stays,
    whatever comes. Only a window of the last few tokens is decoded. The window begins at some earlier token;
    positions in it count from its end, as only its beginning differs from the whole text.

    Args:
        continuation: Of the prompt.
        num_lookback: Characters that ``recent`` reaches back after what earlier tokens made certain.

    Attributes:
        num_chars: Characters so far, with those that may still change.
    """

    def __init__(self, continuation: Continuation, num_lookback: int = 0) -> None:
        self._continuation = continuation
        self._decode, self._adds_nothing = continuation.decode, continuation.adds_nothing
        self._pieces = continuation.detokenizer.byte_pieces
        self._num_rewritten = continuation.detokenizer.num_rewritten
        self._num_lookback = num_lookback
        context = continuation.context
        # The window's tokens; those before middle were there when it last moved. Its text lies from position
        # base of the completion on, the prompt's part below 0. What is before cut is in tail.
        self._window = list(context.tokens)
        self._text = self._decode(self._window)
        self._run: ByteRun | None = None
        self._head: str | None = context.text  # until the window has left the prompt
        self._base = -len(context.text)
        ends_whole = not context.run and not context.text.endswith(INCOMPLETE)
        self._middle = len(self._window) if ends_whole else 0
        self._middle_place = self._cut = 0
        self._tail = ""
        for token in context.run:
            self._window.append(token)
            self._push_byte(self._pieces[token])
        self._measure()

    def fork(self) -> GrowingText:
        """A text that continues from the same tokens."""
        other = copy.copy(self)
        other._window = list(self._window)
        other._run = self._run and self._run.fork()
        return other

    @property
    def recent(self) -> str:
        """The end of the text: at least what the last token added, and the lookback before it.

        Of a longer row of replacement characters at the end only some.
        """
        text = self._tail + self._text[self._cut - self._base :]
        if self._run is not None:
            run = self._run.tail(self._num_lookback + 1)
            is_part = len(run) < self._run.num_chars and self._run.is_text
            text = run if is_part else text + run
        return text[max(len(text) - self.num_chars, 0) :]  # it may begin in the prompt's end

    @property
    def certain_start(self) -> int:
        """Where ``certain`` begins."""
        return self._cut - len(self._tail)

    @property
    def certain(self) -> str:
        """The end of what is certain: at least what the last token made so, and the lookback before it."""
        text = self._tail + self._text[self._cut - self._base :]
        return text[: max(self.num_certain - self.certain_start, 0)]

    @property
    def num_certain(self) -> int:
        """Characters so far that stay."""
        num_open = self._num_rewritten
        if not self._is_whole and self._run is None:
            num_open += min(len(self._text) - len(self._text.rstrip(INCOMPLETE)), _MAX_BYTES)
        return max(self._base + len(self._text) - num_open, 0)

    def push(self, token: int) -> None:
        """Take the next token."""
        if self._adds_nothing(token):
            return
        if self._is_whole:
            if self.num_chars - self._middle_place >= _NUM_SETTLED + self._num_rewritten:
                self._settle(len(self._window), self.num_chars)
        elif self._run is None:
            self._move_broken()
        self._window.append(token)
        byte = self._pieces.get(token)
        if byte is not None:
            self._push_byte(byte)
        else:
            self._text, self._run = self._decode(self._window), None
        self._measure()

    def _push_byte(self, byte: int) -> None:
        if self._run is None:
            self._run = ByteRun()
        self._run.push(byte)
        begins = not self._text and self._run.num_chars == 1 and self._run.is_text
        if begins and not self._decode(self._window):
            self._run.drop_first()

    def _measure(self) -> None:
        """Note how long the text is, and how it ends."""
        run = self._run
        if self._head is not None:  # it may begin inside a character that the prompt began
            text = self._text if run is None else self._text + run.head(len(self._head))
            self._base = -len_common(text, self._head)
        self.num_chars = self._base + len(self._text) + (0 if run is None else run.num_chars)
        self._is_whole = run is None and not self._text.endswith(INCOMPLETE)

    def _move_broken(self) -> None:
        """Look for a place to move the window to, where it has grown without a whole character at its end."""
        num_new = len(self._window) - self._middle
        if num_new < _MAX_BROKEN or num_new % (_MAX_BROKEN // 4):
            return
        for end in range(len(self._window) - _MAX_BYTES - 1, len(self._window) - _MAX_BROKEN // 2, -1):
            before = self._decode(self._window[:end])
            if self._text == before + self._decode(self._window[end:]):
                self._settle(end, self._base + len(before))
                return

    def _settle(self, end: int, place: int) -> None:
        """Let the window begin at its middle; the new middle is after its token ``end``, at ``place``."""
        cut = place - self._num_rewritten
        if self._num_lookback:
            self._tail += self._text[self._cut - self._base : cut - self._base]
            self._tail = self._tail[-self._num_lookback :]
        self._cut, self._middle_place = cut, place
        if self._middle:
            kept = self._window[self._middle :]
            text = self._decode(kept)
            is_long = len(text) >= _MARGIN + self._num_rewritten + (self.num_chars - place)
            if is_long and self._text.endswith(text[_MARGIN:]):  # cleaning up pairs quotes from the first on
                end -= self._middle
                self._base = self.num_chars - len(text)
                self._window, self._text = kept, text
                self._head = None
        self._middle = end


def offsets(continuation: Continuation, token_ids: Sequence[int]) -> list[int]:
    """Where in a completion's text each token begins; a part of a character, where the character does."""
    text, places = GrowingText(continuation), []
    for token in token_ids:
        places.append(text.num_certain)
        text.push(token)
    return places
