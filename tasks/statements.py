"""What the statement of a contest problem says about its right answers.

Contest data holds one output per test, but many statements accept others: numbers up to a tolerance, words in
any case, any of several answers. Nobody wrote a checker for each of thousands of problems; the statement's
own words decide which comparison is honest. Where they allow answers that no rule here can check, an output
that differs is undecided, not wrong.
"""

from __future__ import annotations

import re

from treeshare.evals.matching import (
    AlphaCodeMatcher,
    FloatMatcher,
    FunctionMatcher,
    Matcher,
    TokenMatcher,
    UnknownMatcher,
    Value,
)

_DEFAULT_TOLERANCE = 1e-6

_OUTPUT = re.compile(r"^(?:[^\S\n]|[\-#*=])*+outputs?(?:[^\S\n]|[\-#*:=])*+$", re.IGNORECASE | re.MULTILINE)
_AFTER_OUTPUT = re.compile(
    r"^(?:[^\S\n]|[\-#*=])*+"
    r"(?:examples?|samples?(?: (?:input|output|test)s?)?|notes?|constraints|explanation)\b.{0,12}$",
    re.IGNORECASE | re.MULTILINE,
)
_TOLERANCE_WORDS = re.compile(
    r"(?:absolute|relative)\b.{0,40}\b(?:error|precision|difference|tolerance)"
    r"|(?:error|precision|difference|tolerance)\b.{0,60}\b10\s*+\^?+\{?+\s*+[-\u2212\u2013]\s*+\d"
    r"|(?:error|precision|tolerance)\b.{0,60}\b(?:1e-\d+|0?\.0+1)\b",
    re.IGNORECASE | re.DOTALL,
)
_TOLERANCE = re.compile(
    r"10\s*+(?:\^|\*\*)?+\s*+[\{(]?+\s*+[-\u2212\u2013]\s*+\{?+(?P<power>\d{1,2})|1e-(?P<e>\d{1,2})|0?\.(?P<zeros>0*)1\b",
    re.IGNORECASE,
)
_ANY_CASE = re.compile(
    r"\bin any (?:case|register)\b|\b(?:upper|lower)\s*case\b.{0,40}\b(?:upper|lower)"
    r"|case[- ]insensitive",
    re.IGNORECASE,
)
_SEVERAL = re.compile(
    r"\bany (?:one )?of (?:them|these|those)\b|\bin any order\b|\b(?:any|arbitrary) order\b"
    r"|\b(?:print|output|return|display|write) any\b"
    r"|\bany (?:valid|correct|optimal|suitable|such|possible|appropriate|acceptable|right)\b"
    r"|\b(?:multiple|several|many|more than one|different) "
    r"(?:possible |optimal |correct |valid |right |such )*"
    r"(?:answers?|solutions?|ways|outputs?)\b.{0,80}\bany\b"
    r"|\bany (?:answer|solution)\b.{0,40}\baccepted\b",
    re.IGNORECASE | re.DOTALL,
)


def matcher_for(statement: str) -> Matcher:
    """The comparison that a statement asks for, by its section on output.

    Several right answers come first: an ``UnknownMatcher``. Then a tolerance: a ``FloatMatcher`` with the
    tolerance that is named, 1e-6 if none can be read. Then words in any case. Otherwise the same tokens on
    the same lines.
    """
    section = output_section(statement)
    tolerance = tolerance_of(section)
    plain: Matcher = TokenMatcher()
    if tolerance is not None:
        plain = FloatMatcher(relative=tolerance, absolute=tolerance)
    elif _ANY_CASE.search(section):
        plain = FunctionMatcher(name="tasks/any-case/v1", function=_any_case)
    return UnknownMatcher(plain) if _SEVERAL.search(section) else plain


def alphacode_matcher_for(statement: str) -> Matcher:
    """AlphaCode's comparison, and what the statement allows beyond it: a tolerance, several right answers."""
    section = output_section(statement)
    plain = AlphaCodeMatcher(tolerance=tolerance_of(section) or 0.0)
    return UnknownMatcher(plain) if _SEVERAL.search(section) else plain


def output_section(statement: str) -> str:
    """The part of a statement that describes the output; the whole statement if no part is called so."""
    begin = _OUTPUT.search(statement)
    if begin is None:
        return statement
    end = _AFTER_OUTPUT.search(statement, begin.end())
    return statement[begin.end() : end.start() if end else len(statement)]


def tolerance_of(text: str) -> float | None:
    """The error that a text allows in numbers, or None if it speaks of none."""
    words = _TOLERANCE_WORDS.search(text)
    if words is None:
        return None
    found = _TOLERANCE.search(text, max(0, words.start() - 80))
    if found is None:
        return _DEFAULT_TOLERANCE
    power = found["power"] or found["e"]
    return float(f"1e-{power or len(found['zeros']) + 1}")


def _any_case(got: Value, expected: Value, given: Value) -> str | None:
    return TokenMatcher().difference(got.casefold(), expected.casefold(), given)
