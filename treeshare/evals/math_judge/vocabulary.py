"""Commands, names and characters of answers, and what each is to the judge."""

from __future__ import annotations

import unicodedata


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CHARACTERS = {
    "\u2212": "-",
    "\u2013": "-",
    "\u2010": "-",
    "\u2011": "-",
    "\u2012": "-",
    "\ufe63": "-",
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "\u2217": "*",
    "\u00f7": r"\div ",
    "\u2215": "/",
    "\u2044": "/",
    "\u221a": " sqrt ",
    "\u221b": " cbrt ",
    "\u221c": r"\sqrt[4]",
    "\u03c0": r"\pi ",
    "\u2248": r"\approx ",
    "\u2245": r"\approx ",
    "\u2261": r"\equiv ",
    "\u2192": r"\to ",
    "\u21d2": r"\Rightarrow ",
    "\u2216": r"\setminus ",
    "\u2227": r"\land ",
    "\u2228": r"\lor ",
    "\u2022": r"\cdot ",
    "\u2219": r"\cdot ",
    "\u221e": r"\infty ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u2260": r"\ne ",
    "\u2208": r"\in ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u2205": r"\emptyset ",
    "\u00b1": r"\pm ",
    "\u2213": r"\mp ",
    "\u00b0": r"^\circ ",
    "\u00ba": r"^\circ ",
    "\u2032": "'",
    "\u2019": "'",
    "\u3001": ",",
    "\u27e8": r"\langle ",
    "\u27e9": r"\rangle ",
    "\u230a": r"\lfloor ",
    "\u230b": r"\rfloor ",
    "\u2308": r"\lceil ",
    "\u2309": r"\rceil ",
    "\u211d": r"\mathbb{R}",
    "\u2124": r"\mathbb{Z}",
    "\u2115": r"\mathbb{N}",
    "\u211a": r"\mathbb{Q}",
    "\u2102": r"\mathbb{C}",
    "\u2220": r"\angle ",
    "\u25b3": r"\triangle ",
    "\u2234": "",
    "\u220e": "",
    "\u25a0": "",
    "\u2713": "",
    "\u2714": "",
    "\u2705": "",
    "\u20ac": r"\euro ",
    "\u00a3": r"\pound ",
    "\u00a2": r"\text{ cents}",
    "\u00a0": " ",
    "\u202f": " ",
    "\u2009": " ",
    "\u200b": "",
    "\ufeff": "",
    "\u200c": "",
    "\u200d": "",
    "\u200e": "",
    "\u200f": "",
    "\u2060": "",
    "\u2061": "",
    "\u2062": "",
    "\u2026": r"\ldots ",
}

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell"
)
_CHARACTERS |= {
    letter: f"\\{name} "
    for letter, name in zip("αβγδεζηθκλμνξρστφχψωΓΔΘΛΞΣΦΨΩℓ", _GREEK.split(), strict=True)
}

_CHARACTERS |= {
    written: unicodedata.normalize("NFKC", written)
    for first, last in ((0xFF01, 0xFF5E), (0x1D400, 0x1D6A3), (0x1D7CE, 0x1D7FF))
    for written in map(chr, range(first, last + 1))
    if unicodedata.category(written) != "Cn" and written not in _CHARACTERS
}
"""Wide forms, and letters and digits in the fonts of mathematics."""

_CHARACTERS |= {
    written: "\\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", written).split("\u2044"))
    for written in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞↉"
}

RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₖₓᵢⱼ", "0123456789+-()nkxij", strict=True))
"""Characters above and below the line: those side by side belong together."""

TRANSLATION = str.maketrans(_CHARACTERS)
"""Characters as LaTeX."""

SIZES = _names(
    "left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle "
    "textstyle scriptstyle limits nolimits rm bf it sf tt quad qquad thinspace enspace medspace "
    "thickspace negthinspace hfill noindent centering large Large LARGE huge Huge normalsize small "
    "underline therefore blacksquare square Box checkmark qed"
)
"""Commands that only say how a text looks."""

SAME = {
    "dfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "dbinom": "binom",
    "tbinom": "binom",
    "leq": "le",
    "geq": "ge",
    "leqslant": "le",
    "geqslant": "ge",
    "lt": "<",
    "gt": ">",
    "neq": "ne",
    "ast": "*",
    "times": "*",
    "cdot": "*",
    "div": "/",
    "lbrace": "\\{",
    "rbrace": "\\}",
    "lbrack": "[",
    "rbrack": "]",
    "lparen": "(",
    "rparen": ")",
    "vert": "|",
    "lvert": "|",
    "rvert": "|",
    "mid": "|",
    "colon": ":",
    "cup": "cup",
    "bigcup": "cup",
    "lor": "or",
    "vee": "or",
    "varphi": "phi",
    "varepsilon": "epsilon",
    "vartheta": "theta",
    "arctan": "atan",
    "arcsin": "asin",
    "arccos": "acos",
    "iff": "iff",
    "degree": "circ",
    "degrees": "circ",
    "varnothing": "emptyset",
    "land": "and",
    "wedge": "and",
    "dots": "ldots",
    "cdots": "ldots",
    "to": "to",
    "rightarrow": "to",
    "implies": "iff",
    "Rightarrow": "iff",
    "euro": "EUR",
    "pound": "GBP",
    "pounds": "GBP",
    "infty": "infty",
    "bar": "overline",
    "backslash": "setminus",
    "cr": "\\\\",
}
"""Commands that mean what another one does."""

PLAIN_NAMES = {
    "sqrt": "root",
    "pi": "pi",
    "inf": "infty",
    "infinity": "infty",
    "oo": "infty",
    "sin": "sin",
    "cos": "cos",
    "tan": "tan",
    "cot": "cot",
    "sec": "sec",
    "csc": "csc",
    "log": "log",
    "ln": "ln",
    "exp": "exp",
    "abs": "abs",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "asin": "asin",
    "acos": "acos",
    "atan": "atan",
    "sinh": "sinh",
    "cosh": "cosh",
    "tanh": "tanh",
    "cbrt": "cbrt",
    "floor": "floor",
    "ceil": "ceil",
    "theta": "theta",
    "alpha": "alpha",
    "beta": "beta",
    "lambda": "lambda",
    "and": "and",
    "or": "or",
    "in": "in",
    "U": "cup",
    "union": "cup",
    "EUR": "EUR",
    "USD": "USD",
    "GBP": "GBP",
    "deg": "circ",
    "degree": "circ",
    "degrees": "circ",
}
"""Words without a backslash that are commands, letters or relations."""

FUNCTIONS = _names(
    "sin cos tan cot sec csc asin acos atan sinh cosh tanh log ln exp abs cbrt floor ceil lg arg Re Im"
)
"""Commands with an argument after them."""

LETTERS = _names(
    "alpha beta gamma delta epsilon theta lambda mu nu phi psi chi rho sigma tau omega zeta eta kappa "
    "xi pi ell Gamma Delta Theta Lambda Sigma Phi Psi Omega"
)
"""Commands that are letters."""

MEANT = FUNCTIONS | _names(
    "frac sqrt binom choose circ pm mp cup cap in le ge ne infty emptyset or and iff overline lfloor "
    "rfloor lceil rceil langle rangle mathbb to setminus ldots EUR GBP USD percent angle prime "
    "operatorname max min gcd lcm det dim deg sum prod int lim iint oint partial nabla equiv approx "
    "sim pmod bmod mod triangle perp parallel not forall exists cong"
)
"""Commands that have a meaning to some layer."""

WORDS = _names(
    "text textbf textit textrm textsf texttt textnormal mathrm mathbf mathit mathsf mathtt mbox hbox "
    "operatorname textup mathcal boldsymbol"
)
"""Commands whose argument is text."""
