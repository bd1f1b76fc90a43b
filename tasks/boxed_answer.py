"""The mathematical answer that a text states: in a box, or by words such as "the final answer is"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CHARACTERS = 1000
"""A longer answer is none."""

_SIGNS = re.compile(
    r"\\(?P<box>boxed|fbox|framebox)[ \t\n]{0,9}(?P<bare>[^\s{}$\\])?+|\\.|(?P<brace>[{}])", re.DOTALL
)
_WORDS = re.compile(
    r"\b(?P<final>final[ \t]{1,3})?answer[ \t*_]{0,6}(?:(?:is|are)\b[ \t]{0,3}:?|[:=])", re.IGNORECASE
)
_FILLER = re.compile(r"[\s*_:]{0,40}")
_LINE = re.compile(r"[^\n]{0,2000}")
_FORMULA = re.compile(
    r"\$\$(?P<lines>(?:[^$\\]|\\.){1,1000}+)\$\$|\$(?P<dollars>(?:[^$\\]|\\.){1,1000}+)\$"
    r"|\\\((?P<round>.{1,1000}?)\\\)|\\\[(?P<square>.{1,1000}?)\\\]",
    re.DOTALL,
)
_HOPE = "I hope it is correct"
_SENTENCE = re.compile(r"[.!?](?=\s|\Z)")

Kind = Literal["final words", "box", "words"]


@dataclass(frozen=True, kw_only=True)
class StatedAnswer:
    """An answer in one place of a text.

    Attributes:
        kind: Words with "final" in them, a box, or other words.
        start: Where the words or the box begin.
        text: The answer, without box and dollar signs; never empty.
    """

    kind: Kind
    start: int
    text: str


def first_answer(text: str) -> str | None:
    """The first answer that is said to be final; else the last in a box; else the first that words state.

    For completions of models that were not taught to chat: what follows an answer is about something else.
    """
    answers = stated_answers(text)
    by_kind = {
        kind: [one.text for one in answers if one.kind == kind] for kind in ("final words", "box", "words")
    }
    if by_kind["final words"]:
        return by_kind["final words"][0]
    if by_kind["box"]:
        return by_kind["box"][-1]
    return by_kind["words"][0] if by_kind["words"] else None


def from_last_answer(text: str) -> str:
    """A chat reply from its last answer on, where it states several; else all of it.

    Words without "final" count where nothing else states an answer.
    """
    answers = stated_answers(text)
    strong = [one for one in answers if one.kind != "words"] or answers
    return text[strong[-1].start :] if len(answers) > 1 else text


def between_dollars(text: str) -> str | None:
    """What stands between the first and last dollar sign, or all of a text without two; None if nothing."""
    first, last = text.find("$"), text.rfind("$")
    found = (text[first + 1 : last] if first < last else text).strip()
    return found if 0 < len(found) <= MAX_CHARACTERS else None


def stated_answers(text: str) -> Sequence[StatedAnswer]:
    """All answers, in the order of their places; a box right behind words belongs to them."""
    boxes = _boxes(text)
    found = {start: StatedAnswer(kind="box", start=start, text=content) for start, content in boxes.items()}
    starts = sorted(boxes)
    number = 0
    for words in _WORDS.finditer(text):
        begin = _end(_FILLER.match(text, words.end()))
        end = _end(_LINE.match(text, begin))
        if _WORDS.search(text, begin, end):
            continue  # "Final Answer: The final answer is"
        while number < len(starts) and starts[number] < begin:
            number += 1
        box = starts[number] if number < len(starts) and starts[number] < max(end, begin + 9) else None
        content = boxes[box] if box is not None else _plain(text, begin, end)
        if 0 < len(content) <= MAX_CHARACTERS:
            if box is not None:
                found.pop(box, None)
            kind: Kind = "final words" if words["final"] else "words"
            found[words.start()] = StatedAnswer(kind=kind, start=words.start(), text=content)
    return sorted(found.values(), key=lambda answer: answer.start)


def _end(found: re.Match[str] | None) -> int:
    assert found is not None, "the pattern also fits nothing"
    return found.end()


def _plain(text: str, begin: int, end: int) -> str:
    """The answer that begins at a place: a formula, or the first sentence of the line."""
    formula = _FORMULA.match(text, begin)
    if formula is not None:
        return next(part for part in formula.groups() if part is not None).strip()
    sentence = text[begin:end].partition(_HOPE)[0]
    stop = _SENTENCE.search(sentence)
    return sentence[: stop.start() if stop else len(sentence)].strip(" \t*_")


def _boxes(text: str) -> dict[int, str]:
    """The outermost boxes that are closed: their contents by where they begin."""
    found: dict[int, str] = {}
    opened: list[tuple[int, int] | None] = []
    box: tuple[int, int] | None = None
    inside = 0
    for sign in _SIGNS.finditer(text):
        if sign["box"]:
            box = (sign.start(), sign.end())
            if sign["bare"] and not inside:
                found[sign.start()] = sign["bare"]
        elif sign["brace"] == "{":
            opened.append(box if box is not None and box[1] == sign.start() else None)
            inside += opened[-1] is not None
        elif sign["brace"] and opened:
            closed = opened.pop()
            if closed is not None:
                inside -= 1
                content = text[closed[1] + 1 : sign.start()].strip()
                if not inside and 0 < len(content) <= MAX_CHARACTERS:
                    found[closed[0]] = content
    return found
