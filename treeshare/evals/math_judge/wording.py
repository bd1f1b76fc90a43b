"""Words around an answer: those that only say that one follows, a choice's label, words that mean a value."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from treeshare.evals.math_judge.answers import Items, Quantity, Value
from treeshare.evals.math_judge.arithmetic import negative
from treeshare.evals.math_judge.tokens import Token

_CARRIED = (
    "the a an our my final correct answer answers is are so thus hence therefore we get have obtain there "
    "point points ordered pair pairs triple value values interval solution solutions set matrix vector "
    "number exactly approximately about of expression equation line result equals equal to"
)
_CARRIERS = frozenset(_CARRIED.split())
_STATING = frozenset(("is", "are", "option", "choice", ":", "="))
_LABELS = frozenset("ABCDEFGHIJ")
_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
REALS = Items(kind="tuple", brackets="()", items=(Quantity(node=negative("infty")), Quantity(node="infty")))
_NOTHING = Items(kind="set", items=())
_MEANT: dict[str, Value] = {
    **{word: Quantity(node=Fraction(number)) for number, word in enumerate(_NUMBERS)},
    **dict.fromkeys(("all real numbers", "all reals", "real numbers", "the set of real numbers"), REALS),
    **dict.fromkeys(("all real numbers x", "the real numbers", "the set of all real numbers"), REALS),
    **dict.fromkeys(("no solution", "no solutions", "no real solution", "no real solutions"), _NOTHING),
    **dict.fromkeys(("none", "empty set", "the empty set", "there is no solution"), _NOTHING),
    **dict.fromkeys(("there are no solutions", "there are no real solutions"), _NOTHING),
}


def meaning(words: str) -> Value | None:
    """The value that words in lower case stand for, if they stand for one: ``three``, ``no solution``."""
    return _MEANT.get(words)


def without_carriers(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    """The tokens after words that only say that an answer follows.

    All, if nothing but words follows and the last of those in front is not ``is`` or the like. Words that
    change an answer, such as ``not`` and ``at least``, are not among them.
    """
    place = 0
    while place < len(tokens) and (
        _is_carrier(tokens[place]) or (place and tokens[place].text in (":", "="))
    ):
        place += 1
    rest = tokens[place:]
    if not place or any(token.kind not in ("word", "letter") for token in rest):
        return rest
    return rest if rest and tokens[place - 1].text.casefold() in _STATING else tokens


def scaled(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    """``5 million`` as a product; the same tokens where no such word stands after a number."""
    for place, token in enumerate(tokens[1:], 1):
        first, _, rest = token.text.partition(" ")
        if token.kind == "word" and tokens[place - 1].kind == "number" and first.casefold() in _SCALES:
            times = (replace(token, kind="mark", text="*"), Token("number", str(_SCALES[first.casefold()])))
            unit = (Token("word", rest, True),) if rest else ()
            return (*tokens[:place], *times, *unit, *tokens[place + 1 :])
    return tokens


def _is_carrier(token: Token) -> bool:
    words = [word.strip(".,:;") for word in token.text.casefold().split()]
    return token.kind == "word" and all(word in _CARRIERS or word in _STATING or not word for word in words)


def labelled(tokens: tuple[Token, ...]) -> tuple[str, tuple[Token, ...]]:
    r"""A choice's label before an answer, and the answer: ``(C) 55``, ``\textbf{(C) }55``, ``C. 55``."""
    texts = [token.text for token in tokens[:4]]
    for length, label in (
        (1, texts[0].strip("(). :") if texts and tokens[0].kind == "word" and "(" in texts[0] else ""),
        (2, texts[0] if texts[1:2] in ([")"], ["."], [":"]) else ""),
        (3, texts[1] if texts[0:1] == ["("] and texts[2:3] == [")"] else ""),
    ):
        rest = tokens[length:]
        is_label = label in _LABELS and rest and (length == 1 or rest[0].spaced)
        if is_label and rest[0].kind != "name" and not any(map(_may_be_label, rest)):
            return label, rest
    return "", tokens


def _may_be_label(token: Token) -> bool:
    """Whether a token after a label may be another one: (A) and (B) is neither."""
    return token.kind in ("letter", "word") and token.text.strip("(). :") in _LABELS
