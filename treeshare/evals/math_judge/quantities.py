"""Reads a number or an expression with what stands beside it: unit, currency, percent sign, base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treeshare.evals.math_judge.answers import Quantity, Value
from treeshare.evals.math_judge.arithmetic import letters
from treeshare.evals.math_judge.brackets import places_outside
from treeshare.evals.math_judge.cursor import NoExpressionError
from treeshare.evals.math_judge.syntax import expression
from treeshare.evals.math_judge.units import is_unit, unit_of
from treeshare.evals.math_judge.vocabulary import FUNCTIONS

if TYPE_CHECKING:
    from treeshare.evals.math_judge.tokens import Token

_CURRENCIES = {"USD": "dollar", "EUR": "euro", "GBP": "GBP"}
_BASES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen"),
)


def based(tokens: tuple[Token, ...]) -> Value | None:
    """A number in the base that its subscript names."""
    places = [place for place in places_outside(tokens) if tokens[place].text == "_"]
    if len(places) != 1:
        return None
    front = [token for token in tokens[: places[0]] if token.text not in ("(", ")", "{", "}")]
    behind = [token.text for token in tokens[places[0] + 1 :] if token.text not in ("{", "}", "(", ")")]
    digits = "".join(token.text for token in front).upper()
    is_number = any(token.kind == "number" for token in front) and digits.isascii() and digits.isalnum()
    if not is_number or len(behind) != 1:
        return None
    base = _BASES.index(behind[0]) if behind[0] in _BASES else int(behind[0]) if behind[0].isdecimal() else 0
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    digits = digits.lstrip("0") or "0"
    return Quantity(node=("based", digits, str(base)), base=base, digits=digits)


def quantity(tokens: tuple[Token, ...]) -> Value:
    """An expression, with a unit, a currency or a percent sign beside it.

    Raises:
        NoExpressionError: If the tokens are none.
    """
    currencies = [token for token in tokens if token.text in _CURRENCIES and token.kind == "name"]
    unit = ""
    if currencies:
        if len(currencies) > 1 or currencies[0] not in (
            tokens[0],
            tokens[-1],
            tokens[min(1, len(tokens) - 1)],
        ):
            raise NoExpressionError("a currency inside an expression")
        unit = _CURRENCIES[currencies[0].text]
        tokens = tuple(token for token in tokens if token is not currencies[0])
    tokens, is_percent = _without_percent(tokens)
    if not is_percent:
        tokens, found = _without_modulus(tokens)
        tokens, found = (tokens, found) if found else _without_unit(_without_ordinal(tokens))
        unit = found or unit
    node = expression(tokens)
    if any(token.text == "infty" for token in tokens) and "infty" not in letters(node):
        raise NoExpressionError("infinity less infinity, or times zero")
    return Quantity(node=node, unit=unit, is_percent=is_percent)


def _without_percent(tokens: tuple[Token, ...]) -> tuple[tuple[Token, ...], bool]:
    last = tokens[-1] if tokens else None
    is_sign = last is not None and (last.text == "%" or (last.kind == "word" and last.text == "percent"))
    return (tokens[:-1], True) if is_sign and len(tokens) > 1 else (tokens, False)


def _without_modulus(tokens: tuple[Token, ...]) -> tuple[tuple[Token, ...], str]:
    r"""The tokens before ``\pmod{12}`` or ``(mod 12)``, and that as a unit."""
    texts = [token.text for token in tokens]
    if len(texts) > 2 and texts[-2] == "pmod" and texts[-1].isdecimal():
        return tokens[:-2], f"mod {int(texts[-1])}"
    if len(texts) > 4 and texts[-4:-2] == ["pmod", "{"] and texts[-2].isdecimal():
        return tokens[:-4], f"mod {int(texts[-2])}"
    if len(texts) > 4 and texts[-4] == "(" and texts[-3] in ("mod", "bmod") and texts[-2].isdecimal():
        return tokens[:-4], f"mod {int(texts[-2])}"
    return tokens, ""


def _without_ordinal(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    """``10`` of ``10th`` and ``10^{th}``."""
    texts = [token.text for token in tokens if token.text not in ("^", "{", "}")]
    is_ordinal = len(texts) == 2 and tokens[0].kind == "number" and texts[1] in ("st", "nd", "rd", "th")
    return tokens[:1] if is_ordinal else tokens


def _without_unit(tokens: tuple[Token, ...]) -> tuple[tuple[Token, ...], str]:
    """The tokens before a unit, and the unit; what may be a product of letters is one."""
    texts = [token.text for token in tokens]
    if FUNCTIONS.intersection(texts):
        return tokens, ""
    for end in (["^", "circ"], ["^", "{", "circ", "}"], ["circ"]):
        for scale in ([], ["C"], ["F"]):
            if len(texts) > len(end + scale) and texts[-len(end + scale) :] == end + scale:
                return tokens[: -len(end + scale)], " ".join(["degree", *scale]).replace("degree ", "")
    for place in places_outside(tokens):
        token = tokens[place]
        if token.kind != "word" or place == 0:
            continue
        is_named = is_unit(token.text) or not token.text.isalpha() or (token.spaced and len(token.text) > 2)
        if not is_named or tokens[place - 1].text in ("+", "-", "/", "*", "^", "_"):
            return tokens, ""
        unit = unit_of(tokens[place:])
        return (tokens, "") if unit is None else (tokens[:place], unit)
    return tokens, ""
