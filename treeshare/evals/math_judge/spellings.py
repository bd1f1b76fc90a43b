r"""Ways to write an answer that are put into one before its text becomes tokens: ``10⁻³``, ``base 2``."""

from __future__ import annotations

import re

from treeshare.evals.math_judge.vocabulary import LOWERED, RAISED, TRANSLATION

_RAISED = re.compile(f"[{''.join(RAISED)}]++")
_LOWERED = re.compile(f"[{''.join(LOWERED)}]++")
_OVERLINED = re.compile(r"(?:\d[\u0305\u0304])+")
_BARE_PERIOD = re.compile(r"(?<![\d.}])\.(?=\s?\\(?:overline|bar)\b)")
_DOTTED = re.compile(r"\\dot\s?\{?(\d)\}?(?:(\d{0,100})\\dot\s?\{?(\d)\}?)?")
_ONE_MARK = re.compile(r"(?<![\^_])\{\s?([:;=<>+*/-])\s?\}")

_BLANKS = r"(?:\\?[\s~]|\\[,;:!]){0,9}"
_BASE_NAME = r"\d{1,2}|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|sixteen"
_BASE_BELOW = re.compile(rf"_\{{?\s?\\text\{{\s?base{_BLANKS}({_BASE_NAME})?\s?\}}{_BLANKS}(\d{{0,2}})\}}?")
_BASE_BEHIND = re.compile(
    rf"(?<=[0-9A-Fa-f)}}]){_BLANKS}(?P<text>\\text\{{\s?)?(?P<open>\(\s?)?(?:in )?base[\s-]({_BASE_NAME})\b"
    r"(?(open)\s?\))(?(text)\s?\})"
)
_TEXT = r"\\(?:text|mathrm|textrm|mbox)\{[^{}]{1,80}\}"
_UNIT_FRACTION = re.compile(rf"\\[dt]?frac\s?\{{\s?({_TEXT})\s?\}}\s?\{{\s?({_TEXT})\s?\}}")
_UNIT_POWER = re.compile(r"\\(text|mathrm|textrm)\{([^{}^]{1,80})\^(\{-?\d\}|\d)\}")
_TEXT_COMMA = re.compile(r"(?<=\d)\\text\{,\}(?=\d{3})")
_HALF_DAY = re.compile(r"(?<=\d)(\s{0,3})([ap])\.\s?m\b\.?", re.IGNORECASE)

_ENDS = r"(?P<first>[^\[\](){}]{1,200}?[,;][^\[\](){}]{1,200}?)"
_OPEN_BELOW = re.compile(
    rf"(?P<before>^[\s$]{{0,9}}|\\in\s?|\\cup\s?|=\s?)(?P<left>\\left)?\]{_ENDS}(?P<right>\\right)?(?P<end>[\[\]])"
)
_OPEN_ABOVE = re.compile(
    rf"(?P<before>(?<!\\)\[){_ENDS}(?P<right>\\right)?\[(?=[\s$.]{{0,9}}(?:$|\\cup|\\\)|\\\]))"
)


def in_one_spelling(text: str) -> str:
    """A text in which characters are LaTeX, and what has several spellings has one.

    ``10⁻³`` is ``10^{-3}``; digits with a line above are a period; ``101 base 2`` is ``101_{2}``; a quotient
    of units is written with a slash; ``]0, 1[`` is ``(0, 1)``.
    """
    text = _RAISED.sub(lambda run: f"^{{{''.join(map(RAISED.__getitem__, run[0]))}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{''.join(map(LOWERED.__getitem__, run[0]))}}}", text)
    text = _OVERLINED.sub(lambda run: f"\\overline{{{run[0][::2]}}}", text)
    text = _BARE_PERIOD.sub(r"0\g<0>", text)
    text = _DOTTED.sub(lambda dots: f"\\overline{{{''.join(filter(None, dots.groups()))}}}", text)
    text = _ONE_MARK.sub(r"\1", text.translate(TRANSLATION))
    return _turned_brackets(_beside_numbers(text))


def _beside_numbers(text: str) -> str:
    """Bases, units and times of day, as the other layers read them."""
    if "base" in text:
        text = _BASE_BELOW.sub(lambda found: f"_{{{found[1] or found[2]}}}", text)
        text = _BASE_BEHIND.sub(r"_{\3}", text)
    text = _UNIT_FRACTION.sub(r"\1/\2", text)
    text = _UNIT_POWER.sub(r"\\\1{\2}^\3", text)
    text = _TEXT_COMMA.sub(",", text)
    return _HALF_DAY.sub(r"\1\2m", text)


def _turned_brackets(text: str) -> str:
    """``]0, 1]`` and ``[0, 1[`` with parentheses at the ends that are open."""
    if text.count("]") + text.count("[") > 40:
        return text
    text = _OPEN_BELOW.sub(
        lambda found: f"{found['before']}({found['first']}{')' if found['end'] == '[' else ']'}", text
    )
    return _OPEN_ABOVE.sub(r"\g<before>\g<first>)", text)
