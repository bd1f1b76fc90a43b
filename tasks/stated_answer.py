r"""The text that a reply states as its answer: its last ``\boxed{}``, or what follows its last statement.

As ``stated_number``, for answers that need not be numbers. The time grows with the text.
"""

from __future__ import annotations

import re

MAX_CHARS = 3000
"""Of an answer; what is longer is none: cut, it would be another answer."""

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s{0,3}")
_EDGE = re.compile(r"\\.|[{}]", re.DOTALL)
_WHICH = r"(?:final|correct|right|exact|numerical|overall|best|required)"
_STATEMENT = re.compile(
    rf"(?<![\w/])(?:(?:the|my|our)\s{{1,3}}(?:{_WHICH}\s{{1,3}})?|{_WHICH}\s{{1,3}})(?:answer|choice|option)"
    r"(?:\s{1,3}(?:to|for|of)\s{1,3}(?:the|this|that|your)\s{1,3}(?:question|problem|exercise|puzzle|riddle))?"
    r"[*_\s]{0,8}\b(?:is|are|equals|(?:would|must|should|will)\s{1,3}be)\b[*_ \t]{0,8}:?+"
    r"|(?<![\w/])answers?[*_ \t]{0,8}[:\uff1a=]"
    r"|\#{4,}+"
    r"|^[#*_ \t]{0,12}(?:(?:the|my)[ \t]{1,3})?(?:final[ \t]{1,3})?answer[*_:. \t]{0,8}$",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|\n|\.\*\*|\\\\\n")
_MATH = (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$"))
_AROUND = ' \t\r\n*_`"\u201c\u201d'


def stated_answer(text: str, *, first: bool = False) -> str | None:
    r"""The answer that a text states; None if it states none.

    A box comes before words; of several boxes the last counts. A text of one line that states nothing is its
    own answer.

    Args:
        text: A reply without its reasoning, or a completion.
        first: Whether the first statement in words counts rather than the last: for completions of models
            that continue with another problem.
    """
    box = _last_box(text)
    if box is not None:
        return _cleaned(text[box[0] : box[1]]) or None if box[1] - box[0] <= MAX_CHARS else None
    statements = [found.end() for found in _STATEMENT.finditer(text)]
    stated = next(
        filter(None, (_behind(text, end) for end in (statements if first else statements[::-1]))), None
    )
    if stated:
        return stated
    line = text.strip()
    if "\n" in line or statements or len(line) > MAX_CHARS:
        return None
    return _cleaned(line.removesuffix(".")) or None


def last_statement(text: str) -> str:
    """A reply from the last place on that states its answer; all of it where none does."""
    box = _last_box(text)
    if box is not None:
        return text[text.rindex("\\", 0, box[0]) :]
    for statement in reversed(list(_STATEMENT.finditer(text))):
        if _behind(text, statement.end()):
            return text[statement.start() :]
    return text


def _last_box(text: str) -> tuple[int, int] | None:
    """Where the content of the last box that is closed begins and ends."""
    starts = {found.end(): found for found in _BOX.finditer(text)}
    if not starts:
        return None
    opened: list[int] = []
    closed: dict[int, int] = {}
    for edge in _EDGE.finditer(text, min(starts)):
        if edge[0] == "{":
            opened.append(edge.start())
        elif edge[0] == "}" and opened:
            closed[opened.pop()] = edge.start()
    for start in sorted(starts, reverse=True):
        if start in closed:
            return start + 1, closed[start]
        if start < len(text) and text[start] not in "{\\":
            return start, start + 1  # \boxed 5
    return None


def _behind(text: str, start: int) -> str:
    """What a statement states: to the end of its formula, its sentence or its line."""
    behind = text[start : start + MAX_CHARS].lstrip(_AROUND + ":\uff1a=")
    if _STATEMENT.match(behind):
        return ""  # "Final Answer: The final answer is"
    for opening, closing in _MATH:
        if behind.startswith(opening):
            end = behind.find(closing, len(opening))
            while end > 0 and behind[end - 1] == "\\" and closing == "$":
                end = behind.find(closing, end + 1)
            if end > 0 and not _goes_on(behind, end + len(closing)):
                return _cleaned(behind[len(opening) : end])
    sentence_end = _SENTENCE_END.search(behind)
    if sentence_end is None and len(text) > start + MAX_CHARS:
        return ""
    return _cleaned(behind[: sentence_end.start()] if sentence_end else behind)


def _goes_on(text: str, end: int) -> bool:
    """Whether more of the answer stands after a formula: ``$5$ cm``, ``$1$ and $2$``."""
    return _SENTENCE_END.match(text, end) is None and text[end : end + 1] not in ("", ",", ";", "*")


def _cleaned(answer: str) -> str:
    answer = answer.strip(_AROUND)
    return answer.rstrip(".,;:" + _AROUND) if not answer.endswith("\\") else answer
