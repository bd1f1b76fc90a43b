r"""The number that a text states as its answer: by words, ``####`` or ``\boxed{}``.

Every pattern takes its repeats whole (possessive), or has a bound on them: the time grows with the text.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal["words", "mark", "box"]

_SPACE = r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]"
_CURRENCY = (
    r"(?:\\?\$|[\u20ac\u00a3\u00a5\u20b9\u20bd\u20a9\u20ba]"
    r"|(?:US|CA|AU|NZ|HK|[ACRS])\\?\$|(?:USD|EUR|GBP|INR|CHF|Rs)\b\.?)"
)

_WHICH = r"(?:final|correct|right|exact|numerical|overall|required)"

_STATEMENT = re.compile(
    r"(?P<mark>\#{4,}+)"
    r"|\\(?P<box>boxed|fbox|framebox)(?![a-z])"
    r"|(?<![\w/])(?P<words>"
    rf"(?:(?:(?:the|my|our)\s{{1,3}}(?:{_WHICH}\s{{1,3}})?|{_WHICH}\s{{1,3}})answer"
    r"(?:\s{1,3}(?:to|for|of)\s{1,3}(?:the|this|that|your)\s{1,3}(?:question|problem|exercise|puzzle|riddle))?"
    r"[*_\s]{0,8}\b(?:is|equals|(?:would|must|should|will)\s{1,3}be)\b"
    r"|answer[*_ \t]{0,8}[:\uff1a=]))"
    r"|^(?P<heading>[#*_ \t]{0,12}(?:(?:the|my)[ \t]{1,3})?(?:final[ \t]{1,3})?answer[*_:. \t]{0,8})$",
    re.IGNORECASE | re.MULTILINE,
)
_FILLER = re.compile(
    r"(?:\\text(?:bf)?\{[^{}\n]{0,60}\}\s{0,3}="
    r"|[\s\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff*_`~\"'\u201c\u201d\u2018\u2019\u00ab\u00bb\u201e(\[:\uff1a=\u2248,\u2014{]"
    rf"|{_CURRENCY}"
    r"|\u2013(?=\s)"
    r"|\\(?:[(\[,;:!>\\ ]"
    r"|(?:q?quad|displaystyle|text(?:bf|it|rm|sf|tt)?|math(?:bf|rm|it|sf|tt)|bf|boxed|fbox|framebox|left|approx|sim"
    r"|[lL]arge|LARGE|huge|Huge)(?![a-zA-Z]))"
    r"|<<[^<>\n]{0,80}>>"
    r"|</?(?:b|strong|i|em|u|span|p|br|code|mark|answer)\s?/?>"
    r"|(?<![^\W_])(?:about|approximately|approx\.?|roughly|around|exactly|precisely|just|only|simply|nearly|also|therefore"
    r"|thus|then|now|hence|clearly|indeed|equal\s{1,3}to|(?:a\s{1,3})?total\s{1,3}of)(?!\w)"
    r"|(?<![^\W_])[a-z]\w{0,19}\s{0,3}=(?!=)"
    r")*+",
    re.IGNORECASE,
)
_SIGN = re.compile(r"(?P<sign>[-\u2212+]\s{0,3}|\u2013|(?:minus|negative)\s{1,3})?+", re.IGNORECASE)
_BEFORE_DIGITS = re.compile(rf"(?:{_CURRENCY}|[*_`\s{{]|\\text(?![a-z]))*+", re.IGNORECASE)

_SEPARATOR = (
    r"(?:[,\uff0c](?:\\!)?|\{[,\uff0c](?:\\!)?\}|\\[,;:! ]|\{\\,\}|\{ ?\}"
    rf"|\\thinspace |[_'\u2019~]|&nbsp;|{_SPACE})"
)
_NUMBER = re.compile(
    rf"(?:(?P<grouped>\d{{1,3}}+(?P<by>{_SEPARATOR})\d{{3}}+(?!\d)(?:(?P=by)\d{{3}}+(?!\d))*+)"
    r"|(?P<points>\d{1,3}+(?:\.\d{3}+(?!\d)){2,}+)"
    r"|(?P<european>\d{1,3}+(?:\.\d{3}+(?!\d))++(?=,\d{1,2}+(?!\d|,\d)))"
    r"|(?P<indian>\d{1,2}+(?:,\d{2}(?!\d))++,\d{3}+(?![\d,]\d?))"
    r"|(?P<plain>\d++)"
    r"|(?=\.\d))"
    r"(?:\.(?P<decimals>\d++))?+(?:,(?P<comma>\d{1,2}+)(?!\d|[,.]\d))?+"
)
_POWER = re.compile(
    rf"[eE](?P<e>[+-]?\d{{1,3}}+)(?!\w)"
    rf"|{_SPACE}{{0,3}}(?:\\times|\\cdot|[\u00d7x*]){_SPACE}{{0,3}}10(?:(?:\^|\*\*)\{{?(?P<power>[-\u2212+]?\d{{1,3}}+)\}}?"
    r"|(?P<raised>\u207b?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{1,3}+))"
)
_NO_NUMBER_BEHIND = re.compile(
    rf"{_SPACE}*+(?:[/\u2044\u00f7^:]|\*\*){_SPACE}*+[({{]?{_SPACE}*+\d"  # a fraction, a power, a time
    r"|\s{0,2}\\[dt]?(?:frac|sqrt|div)(?![a-z])|\s{0,2}[\u00bc-\u00be\u2150-\u215e]|[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]"
    rf"|{_SPACE}{{1,3}}\d{{1,20}}+{_SPACE}?[/\u2044]{_SPACE}?\d"  # 2 1/2
    rf"|(?:-|{_SPACE}?[\u2010-\u2015]{_SPACE}?|~|\.{{2,3}}){_CURRENCY}?\d++(?!{_SPACE}{{0,3}}=)"  # a range
    rf"|[,.\uff0c]\d|[,;]{_SPACE}\d{{1,20}}+[,;]{_SPACE}\d"  # 4,5,6
    rf"|{_SPACE}{{0,3}}(?:hundred|thousand|million|billion|trillion|lakh|crore)s?\b|k\b|e[+-]?\d",
    re.IGNORECASE,
)
_LIST_BEHIND = re.compile(
    r"(?:\s|\\[,;: ]){0,3}(?:[,;]|(?:\\text\{)?\s{0,2}(?:and|or|to)\b)[\s}]{0,4}\\?\$?\d"
)
_EQUATION = re.compile(r"\\(?:boxed|fbox|framebox)\s{0,3}\{[^{}\n]{0,200}=")
_WORDS = re.compile(r"\Z|th[ea]|[abcdgijklpqruvwxy]", re.IGNORECASE)
"""No number begins like this, nor a sign or a currency: the quickest answer to the commonest question."""
_OTHER_NUMBER = re.compile(
    r"\\[dt]?(?:frac|sqrt)|[\u00bc-\u00be\u2150-\u215e]|(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven"
    r"|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|half)\b",
    re.IGNORECASE,
)
_RAISED = {
    ord(raised): plain for raised, plain in zip("\u207b\u2070\u00b9\u00b2\u00b3", "-0123", strict=True)
} | {0x2070 + digit: str(digit) for digit in range(4, 10)}
_MAX_POWER = 30


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What a text says of its answer in one place.

    Attributes:
        kind: By words, the data's mark, or a box.
        start: Where it begins.
        number: In canonical form; None if it is none that is taken, such as a fraction, a time or a range.
    """

    kind: Kind
    start: int
    number: str | None


def first_number(text: str) -> str | None:
    """The first number that is stated by words or the data's mark; else the last in a box; else None."""
    boxed = None
    for statement in _statements(text):
        if statement.kind != "box":
            if statement.number is not None:
                return statement.number
        elif statement.number is not None:
            boxed = statement.number
    return boxed


def from_last_statement(text: str) -> str:
    """A chat reply from its last statement on, where that is another than the first; else all of it.

    A model that corrects itself means the last. Headings look like the data's mark, so that is one only where
    there is no other statement.
    """
    last: Statement | None = None
    number_of_statements = 0
    for statement in _statements(text):
        number_of_statements += 1
        if last is None or statement.kind != "mark" or last.kind == "mark":
            last = statement
    return text if last is None or number_of_statements == 1 else text[last.start :]


@functools.lru_cache(maxsize=4)
def _statements(text: str) -> tuple[Statement, ...]:
    """All of a text's; kept, because a chat reply is read twice: cut, then judged."""
    return tuple(_found(text))


def _found(text: str) -> Iterator[Statement]:
    """All places that state something like a number, in their order."""
    position = 0
    while (found := _STATEMENT.search(text, position)) is not None:
        kind: Kind = "mark" if found["mark"] else "box" if found["box"] else "words"
        position, number, is_number = _read(text, found.start(), found.end())
        if is_number:
            yield Statement(kind=kind, start=found.start(), number=number)


def _read(text: str, start: int, end: int) -> tuple[int, str | None, bool]:
    """Read what a statement states.

    Returns:
        Where reading ended; the number, or None; whether anything like a number stands there.
    """
    filler = _sure(_FILLER.match(text, end)).end()
    if _WORDS.match(text, filler):
        return filler, None, False
    box = text.rfind("box", start, filler)
    box = text.rfind("\\", start, box) if box >= 0 else -1
    if box >= 0 and (equation := _EQUATION.match(text, box)):
        filler = _sure(_FILLER.match(text, max(filler, equation.end()))).end()
    sign = _sure(_SIGN.match(text, filler))
    digits = _sure(_BEFORE_DIGITS.match(text, sign.end())).end()
    number = _NUMBER.match(text, digits)
    if number is None or number.end() == number.start():
        return max(filler, end), None, _OTHER_NUMBER.match(text, filler) is not None
    power = _POWER.match(text, number.end())
    behind = power.end() if power else number.end()
    if _NO_NUMBER_BEHIND.match(text, behind) or (box >= 0 and _LIST_BEHIND.match(text, behind)):
        return behind, None, True
    is_negative = bool(sign["sign"]) and sign["sign"][0] != "+" and not _is_bullet(text, sign)
    return behind, _canonical(number, power, is_negative=is_negative), True


def _sure(found: re.Match[str] | None) -> re.Match[str]:
    assert found is not None, "the pattern also fits nothing"
    return found


def _is_bullet(text: str, sign: re.Match[str]) -> bool:
    """Whether a hyphen begins an item of a list."""
    return sign[0][:1] == "-" and sign[0] != "-" and text[: sign.start()].endswith("\n")


def _canonical(number: re.Match[str], power: re.Match[str] | None, *, is_negative: bool) -> str | None:
    """Equal numbers as equal strings: no separators, no zeros that say nothing."""
    whole = next(
        (text for text in number.group("grouped", "points", "european", "indian", "plain") if text), ""
    )
    whole = "".join(character for character in whole if character.isdecimal())
    decimals = number["decimals"] or ""
    if number["comma"]:
        if decimals:
            return None
        decimals = number["comma"]
    if not (whole + decimals).isascii():
        whole, decimals = ("".join(str(int(digit)) for digit in digits) for digits in (whole, decimals))
    if power is not None:
        written = power["e"] or power["power"] or power["raised"].translate(_RAISED)
        shift = int(written.replace("\u2212", "-"))
        if abs(shift) > _MAX_POWER:
            return None
        if shift >= 0:
            decimals = decimals.ljust(shift, "0")
            whole, decimals = whole + decimals[:shift], decimals[shift:]
        else:
            whole = whole.rjust(-shift, "0")
            whole, decimals = whole[:shift], whole[shift:] + decimals
    whole, decimals = whole.lstrip("0"), decimals.rstrip("0")
    if not whole and not decimals:
        return "0"
    return ("-" if is_negative else "") + (whole or "0") + (f".{decimals}" if decimals else "")
