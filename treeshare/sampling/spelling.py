"""A completion's text with hidden tokens inserted."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class HiddenToken:
    """A token whose spelling is not in the text.

    Attributes:
        index: Of the token in the completion.
        begin: Characters of the text before it.
        end: Characters of the text with it; as many, if it is left out.
        spelling: What stands for it.
    """

    index: int
    begin: int
    end: int
    spelling: str


class Spelling:
    """A text with hidden tokens put in, and where its characters are in the text.

    Args:
        text: The text, or its end.
        start: Position at which it begins.
        hidden: The tokens, in order; those before ``start`` are left out.

    Attributes:
        text: With the tokens' spellings.
    """

    def __init__(self, text: str, start: int, hidden: Sequence[HiddenToken]) -> None:
        parts: list[str] = []
        # Of each part: its place here, its place in the text, and whether it is a token.
        self._begins: list[int] = []
        self._parts: list[tuple[int, bool]] = []
        at, length = start, 0
        for token in hidden:
            if token.end < start:
                continue
            begin = max(token.begin, at)
            for part, place, is_token in (
                (text[at - start : begin - start], at, False),
                (token.spelling, begin, True),
            ):
                parts.append(part)
                self._begins.append(length)
                self._parts.append((place, is_token))
                length += len(part)
            at = max(token.end, begin)
        parts.append(text[at - start :])
        self._begins.append(length)
        self._parts.append((at, False))
        self.text = "".join(parts)

    def place(self, index: int) -> int:
        """Position in the text of a character here; of a token's, where the token stands."""
        number = bisect_right(self._begins, index) - 1
        place, is_token = self._parts[number]
        return place if is_token else place + index - self._begins[number]
