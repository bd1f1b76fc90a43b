r"""An answer's text, LaTeX or plain, as tokens: the normal form that the other layers read.

What only says how a text looks is gone: ``$``, ``\left``, ``\,``, ``\displaystyle``, markdown's stars,
``\dfrac`` for ``\frac``. Characters of Unicode are what they stand for. The time grows with the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

MAX_CHARS = 3000
"""A longer text is no answer to be understood; it is only equal to itself."""

Kind = Literal["number", "letter", "name", "command", "word", "mark", "unknown"]


@dataclass(frozen=True)
class Token:
    """A piece of an answer.

    Attributes:
        kind: ``number``: digits, perhaps with a point. ``letter``: one letter. ``name``: of a function, a constant
            or a relation, without a backslash. ``command``: such as ``frac``, an environment as ``begin pmatrix``.
            ``word``: other words, those of ``\text`` too. ``mark``: a sign. ``unknown``: a command that has no
            meaning here.
        text: What it is; of a word, words with single blanks between them.
        spaced: Whether a blank stands before it.
    """

    kind: Kind
    text: str
    spaced: bool = False


_CHARACTERS = {
    "\u2212": "-", "\u2013": "-", "\u2010": "-", "\u2011": "-", "\ufe63": "-", "\uff0d": "-",
    "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ", "\u2217": "*", "\u00f7": r"\div ", "\u2215": "/",
    "\u2044": "/", "\u221a": " sqrt ", "\u03c0": r"\pi ", "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ",
    "\u2260": r"\ne ", "\u2208": r"\in ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2205": r"\emptyset ",
    "\u00b1": r"\pm ", "\u2213": r"\mp ", "\u00b0": r"^\circ ", "\u00ba": r"^\circ ", "\u2032": "'", "\u2019": "'",
    "\uff0c": ",", "\uff1b": ";", "\uff08": "(", "\uff09": ")", "\uff0b": "+", "\uff1d": "=", "\uff05": "%", "\uff1a": ":",
    "\u3001": ",", "\u27e8": r"\langle ", "\u27e9": r"\rangle ", "\u230a": r"\lfloor ", "\u230b": r"\rfloor ",
    "\u2308": r"\lceil ", "\u2309": r"\rceil ", "\u00bd": "\\frac{1}{2}", "\u00bc": "\\frac{1}{4}", "\u00be": "\\frac{3}{4}",
    "\u2153": "\\frac{1}{3}", "\u2154": "\\frac{2}{3}", "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}",
    "\u03b1": r"\alpha ", "\u03b2": r"\beta ", "\u03b3": r"\gamma ", "\u03b8": r"\theta ", "\u03bb": r"\lambda ",
    "\u03c6": r"\phi ", "\u03c9": r"\omega ", "\u03bc": r"\mu ", "\u03c3": r"\sigma ", "\u2220": r"\angle ",
    "\u20ac": r"\euro ", "\u00a3": r"\pound ", "\u00a2": r"\text{ cents}", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
    "\u200b": "", "\ufeff": "", "\u2061": "", "\u2062": "", "\u2026": r"\ldots ",
}  # fmt: skip
_CHARACTERS |= {raised: f"^{{{plain}}}" for raised, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)}
_CHARACTERS |= {low: f"_{{{plain}}}" for low, plain in zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True)}
_TRANSLATION = str.maketrans(_CHARACTERS)

_SIZES = frozenset(
    "left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle textstyle "
    "scriptstyle limits nolimits rm bf it sf tt quad qquad thinspace enspace medspace thickspace negthinspace "
    "hfill noindent centering large Large LARGE huge Huge normalsize small".split()
)
_SAME = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "geq": "ge",
    "leqslant": "le", "geqslant": "ge", "lt": "<", "gt": ">", "neq": "ne", "ast": "*", "times": "*", "cdot": "*",
    "div": "/", "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")",
    "vert": "|", "lvert": "|", "rvert": "|", "mid": "|", "colon": ":", "cup": "cup", "bigcup": "cup", "lor": "or",
    "vee": "or", "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta", "arctan": "atan", "arcsin": "asin",
    "arccos": "acos", "iff": "iff", "degree": "circ", "degrees": "circ", "varnothing": "emptyset", "land": "and",
    "wedge": "and", "dots": "ldots", "cdots": "ldots", "to": "to", "rightarrow": "to", "implies": "iff",
    "Rightarrow": "iff", "euro": "EUR", "pound": "GBP", "pounds": "GBP", "infty": "infty", "bar": "overline",
}  # fmt: skip
_PLAIN_NAMES = {
    "sqrt": "root", "pi": "pi", "inf": "infty", "infinity": "infty", "oo": "infty", "sin": "sin", "cos": "cos",
    "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "log": "log", "ln": "ln", "exp": "exp", "abs": "abs",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "asin": "asin", "acos": "acos", "atan": "atan", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "cbrt": "cbrt", "floor": "floor", "ceil": "ceil", "theta": "theta",
    "alpha": "alpha", "beta": "beta", "lambda": "lambda", "and": "and", "or": "or", "in": "in", "U": "cup",
    "union": "cup", "EUR": "EUR", "USD": "USD", "GBP": "GBP", "deg": "circ", "degree": "circ", "degrees": "circ",
}  # fmt: skip
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc asin acos atan sinh cosh tanh log ln exp abs cbrt floor ceil lg arg Re Im".split()
)
_LETTERS = frozenset(
    "alpha beta gamma delta epsilon theta lambda mu nu phi psi chi rho sigma tau omega zeta eta kappa xi pi ell Gamma "
    "Delta Theta Lambda Sigma Phi Psi Omega".split()
)
_MEANT = (
    frozenset(
        "frac sqrt binom choose circ pm mp cup cap in le ge ne infty emptyset or and iff overline lfloor rfloor lceil "
        "rceil langle rangle mathbb to setminus ldots EUR GBP USD percent angle prime operatorname max min gcd "
        "lcm det dim deg sum prod int lim iint oint partial nabla equiv approx sim pmod bmod mod triangle perp "
        "parallel not forall exists cong".split()
    )
    | FUNCTIONS
)
_WORDS = (
    "text textbf textit textrm textsf texttt textnormal mathrm mathbf mathit mathsf mathtt mbox hbox operatorname "
    "textup mathcal boldsymbol"
).split()

_GROUPED = r"(?:,\\! ?|\{,\}(?:\\!)? ?|\\,|\{\\,\}|\\ )"
_TOKEN = re.compile(
    r"(?P<blank>[\s~]++|\\[ ,;:!>/]|&nbsp;|\$|\\[()\[\]](?![\d.]*+(?:pt|em|ex|mm|cm))|\*\*(?!\s?[\w({\\.-])|`)"
    rf"|(?P<number>(?:\d{{1,3}}+(?:{_GROUPED}\d{{3}}+(?!\d))++|\d++)(?:\.(?!\.)\d*+)?+|\.\d++)(?:[eE](?P<e>[+-]?\d{{1,4}}+)(?!\w))?+"
    rf"|\\(?P<words>{'|'.join(_WORDS)})\*?+\s{{0,3}}\{{(?P<content>[^{{}}]{{0,300}}+)\}}"
    r"|\\(?P<space>h?v?space|hskip|phantom|color|label|tag)\*?+\{[^{}]{0,40}+\}"
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
_NOT_DIGITS = re.compile(r"[^\d.]+")
_OPENING, _CLOSING = ("(", "[", "\\{"), (")", "]", "\\}")
_MARKS = {"**": "^", "<=": "le", ">=": "ge", "!=": "ne", "==": "=", "\\$": "USD", "\\%": "%", "\\|": "|", "\\#": "#"}


def tokens_of(text: str, *, commas_group: bool = True) -> tuple[Token, ...]:
    """The tokens of an answer.

    Args:
        text: At most ``MAX_CHARS`` characters are read.
        commas_group: Whether ``1,000`` outside all brackets is a number rather than a list.
    """
    source = text[:MAX_CHARS].translate(_TRANSLATION)
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
        if found["words"] is not None and found["content"].lstrip()[:1].isdigit():
            source = f"{found['content']} {source[position:]}"  # \\text{5 cm}
            position, is_spaced = 0, True
            continue
        token = _token(found, is_spaced)
        if token is None or (token.text == "^" and found[0] == "**" and not tokens):
            is_spaced = True
            continue
        depth += (token.text in _OPENING) - (token.text in _CLOSING)
        tokens.append(token)
        is_spaced = False
    return tuple(tokens)


def _token(found: re.Match[str], is_spaced: bool) -> Token | None:
    kind = found.lastgroup
    if kind in ("blank", "space"):
        return None
    if found["number"] is not None:
        digits = _NOT_DIGITS.sub("", found["number"])
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
    words = " ".join(content.replace("\\", " ").replace("$", " ").split())
    if not words:
        return None
    if words in ("and", "or", "in"):
        return Token("name", words, True)
    if words.isascii() and words.isdigit():
        return Token("number", words, True)
    if words.strip(".") in ("degree", "degrees"):
        return Token("command", "circ", True)
    return Token("word", words, True)


def _command(name: str, is_spaced: bool) -> Token | None:
    if name in _SIZES:
        return None
    name = _SAME.get(name, name)
    if not name[0].isalpha():
        return Token("mark", name, is_spaced)
    if name in ("and", "or", "in", "le", "ge", "ne", "EUR", "GBP", "USD"):
        return Token("name", name, is_spaced)
    if name in _LETTERS:
        return Token("letter", name, is_spaced)
    if name == "boxed" or name == "fbox":
        return None
    return Token("command" if name in _MEANT else "unknown", name, is_spaced)


def _run(run: str, is_spaced: bool) -> Token:
    """Letters without a backslash: a name, a letter, or a word."""
    if run in _PLAIN_NAMES and (run != "U" or is_spaced):
        name = _PLAIN_NAMES[run]
        if name in _LETTERS:
            return Token("letter", name, is_spaced)
        return Token("name" if name in ("and", "or", "in", "EUR", "USD", "GBP") else "command", name, is_spaced)
    return Token("letter" if len(run) == 1 else "word", run, is_spaced)
