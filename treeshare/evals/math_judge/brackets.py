"""Tokens by their brackets: what is inside, what is outside, and the parts between separators."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from treeshare.evals.math_judge.tokens import Token

_OPENING, _CLOSING = (
    frozenset(("(", "[", "{", "\\{", "langle", "lfloor", "lceil")),
    frozenset((")", "]", "}", "\\}", "rangle", "rfloor", "rceil")),
)

_BEHIND, _IN_FRONT = (".", ",", ";", ":", "*", "?", "=", "\\\\"), (":", "*", "^", "=", "#", "\\\\")


def trimmed(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    """Without punctuation around it, and without a group of braces around all of it."""
    if [token.text for token in tokens[-3:]] == ["."] * 3:  # an ellipsis: there are more digits
        return tokens
    while tokens and tokens[-1].kind == "mark" and tokens[-1].text in _BEHIND:
        tokens = tokens[:-1]
    while tokens and (
        tokens[0].text == "approx" or (tokens[0].kind == "mark" and tokens[0].text in _IN_FRONT)
    ):
        tokens = tokens[1:]
    if len(tokens) == 2 and tokens[0].kind == "letter" and tokens[1].text == ")":  # a choice: A)
        tokens = tokens[:1]
    if tokens and tokens[0].text == "{" and closing_place(tokens, 0) == len(tokens) - 1:
        return trimmed(tokens[1:-1])
    return tokens


def words_of(tokens: Sequence[Token]) -> str:
    """The letters and digits of tokens as words in lower case."""
    words = " ".join(token.text for token in tokens).casefold()
    kept = "".join(character if character.isalnum() or character in "-+'" else " " for character in words)
    words = " ".join(kept.split())
    return words[1:-1].strip() if len(words) > 2 and words[0] == words[-1] == "'" else words


def closing_place(tokens: Sequence[Token], start: int) -> int:
    """Where the bracket at ``start`` closes; the end if it does not."""
    depth = 0
    for place in range(start, len(tokens)):
        depth += step_of(tokens[place])
        if depth == 0:
            return place
    return len(tokens)


def step_of(token: Token) -> int:
    """1 for a bracket that opens, -1 for one that closes, 0 for anything else."""
    if token.kind == "command" and " " in token.text:
        return 1 if token.text.startswith("begin") else -1
    if token.kind in ("mark", "command"):
        return (token.text in _OPENING) - (token.text in _CLOSING)
    return 0


def places_outside(tokens: Sequence[Token]) -> Iterator[int]:
    """Places outside all brackets."""
    depth = 0
    for place, token in enumerate(tokens):
        step = step_of(token)
        if depth == 0 and step == 0:
            yield place
        depth += step


def parts_at(tokens: tuple[Token, ...], *texts: str) -> list[tuple[Token, ...]]:
    """The parts between separators outside brackets."""
    cuts = [
        i
        for i in places_outside(tokens)
        if tokens[i].kind in ("mark", "name", "command") and tokens[i].text in texts
    ]
    bounds = zip([-1, *cuts], [*cuts, len(tokens)], strict=True)
    return [tokens[before + 1 : after] for before, after in bounds]
