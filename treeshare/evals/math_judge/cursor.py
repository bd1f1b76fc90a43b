"""A place in a row of tokens, and how deep inside each other brackets are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treeshare.evals.math_judge.tokens import Token

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_DEPTH = 40
"""Of brackets, fractions, roots and powers inside each other."""

_END = Token("mark", "")


class NoExpressionError(ValueError):
    """The tokens are no expression; the message says at which."""


class Cursor:
    """Goes through tokens once."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = list(tokens)
        self._place = 0
        self._depth = 0

    def peek(self, ahead: int = 0) -> Token:
        """The token at the place, or so many after it; an empty one after the end."""
        place = self._place + ahead
        return self._tokens[place] if place < len(self._tokens) else _END

    def last_kind(self) -> str:
        """The kind of the token before the place; empty at the start."""
        return self._tokens[self._place - 1].kind if 0 < self._place <= len(self._tokens) else ""

    def take(self) -> Token:
        """The token at the place, which moves on."""
        token = self.peek()
        self._place += 1
        return token

    def at(self, *texts: str) -> bool:
        """Whether one of these marks or commands is at the place."""
        token = self.peek()
        return token.kind in ("mark", "command") and token.text in texts

    def skip(self, *texts: str) -> bool:
        """Take one of these marks or commands, if it is there."""
        found = self.at(*texts)
        self._place += found
        return found

    def expect(self, text: str) -> None:
        """Take a mark or command.

        Raises:
            NoExpressionError: If another token is there.
        """
        if not self.skip(text):
            raise NoExpressionError(f"expected {text}, got {self.peek().text[:40] or 'the end'}")

    def expect_end(self) -> None:
        """Refuse what is left over."""
        if self._place < len(self._tokens):
            raise NoExpressionError(f"nothing can be made of {self.peek().text[:40]}")

    def insert(self, tokens: Sequence[Token]) -> None:
        """Put tokens at the place, to be taken next."""
        self._tokens[self._place : self._place] = tokens

    def mark(self) -> int:
        """The place, for ``back`` and ``since``."""
        return self._place

    def back(self, place: int) -> None:
        """Go to an earlier place, or a later one."""
        self._place = place

    def since(self, place: int) -> Sequence[Token]:
        """The tokens between an earlier place and this one."""
        return self._tokens[place : self._place]

    def deeper(self) -> None:
        """Go into a bracket or the like.

        Raises:
            NoExpressionError: If it is too deep.
        """
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NoExpressionError(f"nested deeper than {MAX_DEPTH}")

    def back_out(self) -> None:
        """Leave a bracket."""
        self._depth -= 1
