r"""An answer's text, LaTeX or plain, as tokens: the normal form that the other layers read.

What only says how a text looks is gone: ``$``, ``\left``, ``\,``, ``\displaystyle``, markdown's stars,
``\dfrac`` for ``\frac``. Characters of Unicode are what they stand for. The time grows with the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from treeshare.evals.math_judge.spellings import in_one_spelling
from treeshare.evals.math_judge.vocabulary import LETTERS, MEANT, PLAIN_NAMES, SAME, SIZES, WORDS

MAX_CHARS = 3000
"""A longer text is no answer to be understood; it is only equal to itself."""

Kind = Literal["number", "letter", "name", "command", "word", "mark", "unknown"]


@dataclass(frozen=True)
class Token:
    r"""A piece of an answer.

    Attributes:
        kind: ``number``: digits, perhaps with a point. ``letter``: one letter. ``name``: a relation, a
            currency, ``and`` or ``or``. ``command``: such as ``frac``, an environment as ``begin pmatrix``.
            ``word``: other words, those of ``\text`` too. ``mark``: a sign. ``unknown``: a command without
            a meaning here.
        text: What it is; of a word, words with single blanks between them.
        spaced: Whether a blank stands before it.
    """

    kind: Kind
    text: str
    spaced: bool = False


_GROUPED = r"(?:,\\! ?|,\\,|\{,\}(?:\\!)? ?|\\,|\\;|\{\\,\}|\\ |~|[ \u00a0\u2009\u202f](?=\d{3}(?!\d*\s*/)))"
_TEXTS = "|".join(sorted(WORDS, key=len, reverse=True))
_TOKEN = re.compile(
    r"(?P<blank>[\s~]++|\\(?:left|right)\s?\.(?!\d)|\\[ ,;:!>/]|&nbsp;|\$|\\[()\[\]]|\*\*(?!\s?[\w({\\.-])|`)"
    rf"|(?P<number>(?:\d{{1,3}}+(?:{_GROUPED}\d{{3}}+(?!\d))++|\d++)(?:\.(?!\.)\d*+)?+|\.\d++)"
    r"(?:[eE](?P<e>[+-]?\d{1,4}+)(?!\w))?+"
    rf"|\\(?P<words>{_TEXTS})\*?+\s{{0,3}}\{{(?P<content>[^{{}}]{{0,300}}+)\}}"
    r"|\\(?P<space>h?v?space|hskip|phantom|color|textcolor|label|tag)\*?+\{[^{}]{0,40}+\}"
    r"|\\(?P<edge>begin|end)\s{0,3}\{(?P<environment>[a-zA-Z]{1,20}+)\*?+\}"
    r"|\\(?P<command>[a-zA-Z]++)"
    r"|(?P<escaped>\\[{}$%|#&_])"
    r"|(?P<row>\\\\)(?:\[[^\[\]]{0,10}\])?+"
    r"|(?P<run>[a-zA-Z]{3,}+(?:[-'][a-zA-Z]{2,}+)++|[a-zA-Z]++)"
    r"|(?P<mark>\*\*|<=|>=|!=|==|[^\w\s\\])"
    r"|(?P<other>.)",
    re.DOTALL,
)
_COMMAS = re.compile(r"\d{1,3}+(?:,\d{3}+(?!\d))++(?![,.]?\d)(?:\.\d++)?+|\d{1,3}+(?:,\d{3}+(?!\d))++\.\d++")
_BLANKS = re.compile(r"\\[,;:!> ]|[~\s]+")
_FORMULA = re.compile(r"\s*(?:[(\[+-]\s*)?(?:\\?\$\s*)?\.?\d")
_LABELS = re.compile(r"\s*\(?[A-Z]\)?(?:\s*(?:,|,?\s(?:and|or)\s)\s*\(?[A-Z]\)?)+\s*")
_NOT_DIGITS = re.compile(r"[^\d.]+")
_OPENING, _CLOSING = ("(", "[", "\\{"), (")", "]", "\\}")
_CALLED_WORDS = ("gcd", "lcm", "max", "min")
_MARKS = {
    "**": "^",
    "<=": "le",
    ">=": "ge",
    "!=": "ne",
    "==": "=",
    "\\$": "USD",
    "\\%": "%",
    "\\|": "|",
    "\\#": "#",
}


def tokens_of(text: str, *, commas_group: bool = True) -> tuple[Token, ...]:
    """The tokens of an answer.

    Args:
        text: At most ``MAX_CHARS`` characters are read.
        commas_group: Whether ``1,000`` outside all brackets is a number rather than a list.
    """
    source = in_one_spelling(text[:MAX_CHARS])
    if source.count("$") - source.count("\\$") == 1:  # of money: a formula has two
        source = source.replace("\\$", "$").replace("$", "\\$")
    tokens: list[Token] = []
    position, depth, is_spaced = 0, 0, False
    while position < len(source):
        grouped = _COMMAS.match(source, position) if commas_group and depth == 0 else None
        if grouped and not (tokens and tokens[-1].text in (",", "_") and not is_spaced):
            tokens.append(Token("number", grouped[0].replace(",", ""), is_spaced))
            position, is_spaced = grouped.end(), False
            continue
        found = _TOKEN.match(source, position)
        assert found is not None, "the pattern takes any character"
        position = found.end()
        content = found["content"]
        if content is not None and (_FORMULA.match(content) or _LABELS.fullmatch(content)):
            source = f"{content} {source[position:]}"  # \\text{5 cm}, \\text{A and B}
            position, is_spaced = 0, True
            continue
        token = _token(found, is_spaced)
        if token is None or (token.text == "^" and found[0] == "**" and not tokens):
            is_spaced = True
            continue
        depth += (token.text in _OPENING) - (token.text in _CLOSING)
        tokens.append(token)
        is_spaced = False
    _settle_words(tokens)
    return tuple(tokens)


def _settle_words(tokens: list[Token]) -> None:
    """Words whose meaning is seen by what stands beside them: inches, functions, remainders."""
    for place, token in enumerate(tokens):
        before = tokens[place - 1] if place else Token("mark", "")
        after = tokens[place + 1] if place + 1 < len(tokens) else Token("mark", "")
        name = token.text.casefold()
        if token.text == "in" and after.text in ("", "^", "."):
            tokens[place] = Token("word", "in", True)
        elif token.kind == "word" and name in _CALLED_WORDS and after.text in ("(", "\\{"):
            tokens[place] = Token("command", name, token.spaced)
        elif token.kind == "word" and name == "to" and (before.kind, after.kind) == ("number", "number"):
            tokens[place] = Token("mark", ":", True)
        elif token.kind == "word" and name == "mod" and (before.kind, after.kind) == ("number", "number"):
            tokens[place] = Token("command", "bmod", True)


def _token(found: re.Match[str], is_spaced: bool) -> Token | None:
    kind = found.lastgroup
    if kind in ("blank", "space"):
        return None
    if found["number"] is not None:
        digits = _NOT_DIGITS.sub("", found["number"])
        if not found.string.startswith(("\\overline", "\\bar"), found.end()):
            digits = digits.removesuffix(".")
        return Token("number", digits + (f"e{found['e']}" if found["e"] else ""), is_spaced)
    if found["words"] is not None:
        return _words(found["content"])
    if found["edge"] is not None:
        return Token("command", f"{found['edge']} {found['environment']}", is_spaced)
    if found["command"] is not None:
        return _command(found["command"], is_spaced)
    if found["row"] is not None:
        return Token("mark", "\\\\", is_spaced)
    if found["run"] is not None:
        return _run(found["run"], is_spaced)
    text = found[0]
    text = _MARKS.get(text, text)
    return Token("name" if text in ("le", "ge", "ne", "USD") else "mark", text, is_spaced)


def _words(content: str) -> Token | None:
    r"""What stands in ``\text``: always apart from what is before it."""
    words = " ".join(_BLANKS.sub(" ", content).replace("\\", " ").replace("$", " ").split())
    if not words:
        return None
    if words in ("and", "or"):
        return Token("name", words, True)
    if words.isascii() and words.isdigit():
        return Token("number", words, True)
    if words.strip(".") in ("degree", "degrees"):
        return Token("command", "circ", True)
    return Token("word", words, True)


def _command(name: str, is_spaced: bool) -> Token | None:
    if name in SIZES or name in WORDS:  # of words, those around a formula
        return None
    name = SAME.get(name, name)
    if not name[0].isalpha():
        return Token("mark", name, is_spaced)
    if name in ("and", "or", "in", "le", "ge", "ne", "EUR", "GBP", "USD"):
        return Token("name", name, is_spaced)
    if name in LETTERS:
        return Token("letter", name, is_spaced)
    if name == "boxed" or name == "fbox":
        return None
    return Token("command" if name in MEANT else "unknown", name, is_spaced)


def _run(run: str, is_spaced: bool) -> Token:
    """Letters without a backslash: a name, a letter, or a word."""
    if run in PLAIN_NAMES and (run != "U" or is_spaced):
        name = PLAIN_NAMES[run]
        if name in LETTERS:
            return Token("letter", name, is_spaced)
        return Token(
            "name" if name in ("and", "or", "in", "EUR", "USD", "GBP") else "command", name, is_spaced
        )
    return Token("letter" if len(run) == 1 else "word", run, is_spaced)
