"""Reads equations and inequalities: named values, intervals, relations between expressions."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from treeshare.evals.math_judge.absolute import absolute_value
from treeshare.evals.math_judge.answers import Items, Quantity, Relation, Value, exact
from treeshare.evals.math_judge.arithmetic import (
    CONSTANTS,
    ZERO,
    Node,
    add,
    letters,
    linear,
    negative,
    quotient,
)
from treeshare.evals.math_judge.brackets import places_outside
from treeshare.evals.math_judge.cursor import NoExpressionError
from treeshare.evals.math_judge.syntax import expression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from treeshare.evals.math_judge.tokens import Token

RELATIONS = ("=", "<", ">", "le", "ge", "ne", "in", "approx", "equiv")
_TURNED = {"<": ">", ">": "<", "le": "ge", "ge": "le"}
_INFINITY = Quantity(node="infty")
_BELOW_ALL = Quantity(node=negative("infty"))


def related(tokens: tuple[Token, ...], read: Callable[[tuple[Token, ...]], Value]) -> Value | None:
    """What tokens with relations outside brackets are; None if there is no relation.

    Args:
        tokens: An answer, or an item.
        read: Reads one side.
    """
    places = [i for i in places_outside(tokens) if tokens[i].kind != "word" and tokens[i].text in RELATIONS]
    if not places:
        return None
    signs = [tokens[i].text for i in places]
    bounds = zip([-1, *places], [*places, len(tokens)], strict=True)
    sides = [tokens[a + 1 : b] for a, b in bounds]
    if signs == ["in"]:
        return read(sides[1])
    if set(signs) <= {"=", "equiv"}:
        return _equated(sides, read)
    if signs[-1] == "approx" and set(signs[:-1]) <= {"="}:
        if len(sides) == 2 and _is_name(sides[0]):
            return _named(read(sides[1]), _name(sides[0]))
        return _equated(sides[:-1], read) if len(sides) > 2 else read(sides[0])
    return _inequality(sides, signs, read)


def without_points(points: Iterable[Fraction]) -> Value:
    """The real numbers without some."""
    ends = [_BELOW_ALL, *(Quantity(node=point) for point in sorted(set(points))), _INFINITY]
    parts = [_interval("(", below, above, ")") for below, above in pairwise(ends)]
    return parts[0] if len(parts) == 1 else Items(kind="union", items=tuple(parts))


def between_bounds(
    parts: Sequence[tuple[Token, ...]], read: Callable[[tuple[Token, ...]], Value]
) -> Value | None:
    """The interval of ``x > 2 and x < 5``; None if these are not two such bounds of one letter."""
    if len(parts) != 2 or any(
        not any(token.text in _TURNED for token in part) or part[0].text in ("(", "[") for part in parts
    ):
        return None
    named = [{token.text for token in part if token.kind == "letter"} - CONSTANTS for part in parts]
    values = [read(part) for part in parts]
    ends: dict[str, tuple[Fraction, str]] = {}
    for value in values:
        if not isinstance(value, Items) or len(value.items) != 2 or value.kind != "tuple":
            return None
        for place, infinite in ((0, _INFINITY), (1, _BELOW_ALL)):
            bound = exact(value.items[place])
            if value.items[1 - place] == infinite and bound is not None:
                ends["above" if place else "below"] = (bound, value.brackets[place])
    if len(ends) != 2 or named[0] != named[1] or len(named[0]) != 1 or ends["below"][0] >= ends["above"][0]:
        return None
    (below, opening), (above, closing) = ends["below"], ends["above"]
    return _interval(opening, Quantity(node=below), Quantity(node=above), closing)


def _interval(opening: str, below: Value, above: Value, closing: str) -> Items:
    return Items(kind="tuple", brackets=opening + closing, items=(below, above))


def _equated(sides: list[tuple[Token, ...]], read: Callable[[tuple[Token, ...]], Value]) -> Value:
    first, last = sides[0], sides[-1]
    if _is_name(first) and not (_letters_of(first) & _letters_of(last) and len(sides) == 2):
        return _named(read(last), _name(first))
    if len(sides) == 2 and _is_name(last) and not _letters_of(first) & _letters_of(last):
        return _named(read(first), _name(last))
    if len(sides) > 2:
        return read(last)
    left, right = expression(first), expression(last)
    difference = add([left, negative(right)])
    if difference == ZERO and not (letters(left) | letters(right)) - CONSTANTS:
        return read(last)  # 1/2 = 0.5
    return _both_roots(difference) or Relation(kind="=", node=difference)


def _inequality(
    sides: list[tuple[Token, ...]], signs: list[str], read: Callable[[tuple[Token, ...]], Value]
) -> Value:
    """An interval where one letter's bounds are said, else a relation."""
    if signs == ["ne"]:
        return _unequal(add([expression(sides[0]), negative(expression(sides[1]))]))
    if len(sides) == 2:
        is_letter = [_is_bounded_letter(sides[place], sides[1 - place]) for place in (0, 1)]
        if is_letter[1]:
            sides, signs = sides[::-1], [_TURNED[signs[0]]]
        closes = signs[0] in ("le", "ge")
        is_less = signs[0] in ("<", "le")
        if any(is_letter):
            return _half_line(read(sides[1]), is_less=is_less, closes=closes)
        left, right = (expression(side) for side in (sides if is_less else sides[::-1]))
        return _solved(add([left, negative(right)]), closes=closes)
    if len(sides) != 3:
        raise NoExpressionError("a chain of relations")
    if all(sign in (">", "ge") for sign in signs):
        sides, signs = sides[::-1], [_TURNED[sign] for sign in reversed(signs)]
    if not all(sign in ("<", "le") for sign in signs):
        raise NoExpressionError("a chain of relations")
    opening, closing = "[" if signs[0] == "le" else "(", "]" if signs[1] == "le" else ")"
    if len(sides[1]) == 1 and sides[1][0].kind == "letter":
        return _interval(opening, read(sides[0]), read(sides[2]), closing)
    below, middle, above = (expression(side) for side in sides)
    return _between(below, middle, above, opening, closing)


def _is_bounded_letter(side: tuple[Token, ...], other: tuple[Token, ...]) -> bool:
    """Whether a side is one letter, and the other side says its bound, in which no letter is."""
    is_letter = len(side) == 1 and side[0].kind == "letter" and side[0].text not in CONSTANTS
    return is_letter and not any(token.kind == "letter" and token.text not in CONSTANTS for token in other)


def _half_line(bound: Value, *, is_less: bool, closes: bool) -> Value:
    if is_less:
        return _interval("(", _BELOW_ALL, bound, "]" if closes else ")")
    return _interval("[" if closes else "(", bound, _INFINITY, ")")


def _unequal(node: Node) -> Value:
    found = linear(node)
    point = quotient(negative(found[2]), found[1]) if found else None
    return without_points([point]) if isinstance(point, Fraction) else Relation(kind="ne", node=node)


def _solved(node: Node, *, closes: bool) -> Value:
    """What is less than zero, or not more: solved where it, or its absolute value, is linear in a letter."""
    found = linear(node)
    if found is None:
        return _bounded_absolute(node, closes=closes) or Relation(kind="le" if closes else "<", node=node)
    _, factor, rest = found
    bound = Quantity(node=quotient(negative(rest), factor))
    return _half_line(bound, is_less=factor > 0, closes=closes)


def _bounded_absolute(node: Node, *, closes: bool) -> Value | None:
    """``|2x-1| < 3`` and ``|2x-1| > 3`` as intervals; None if it is something else."""
    found = absolute_value(node)
    if found is None:
        return None
    inside, bound, factor = found
    if factor < 0:  # more than the bound
        if bound < 0 or (bound == 0 and closes):
            return without_points([])
        outer = (add([inside, bound]), add([bound, negative(inside)]))
        return Items(kind="union", items=tuple(_solved(side, closes=closes) for side in outer))
    if bound < 0 or (bound == 0 and not closes):
        return Items(kind="set", items=())
    if bound == 0:
        return _both_roots(node)
    opening, closing = ("[", "]") if closes else ("(", ")")
    return _between(-bound, inside, bound, opening, closing)


def _both_roots(node: Node) -> Value | None:
    """``|2x-1| = 3`` as its solutions; None if it is something else."""
    found = absolute_value(node)
    if found is None:
        return None
    inside, bound, _ = found
    if bound < 0:
        return Items(kind="set", items=())
    solved = linear(inside)
    assert solved is not None
    _, factor, rest = solved
    ends = [quotient(add([end, negative(rest)]), factor) for end in {bound, -bound}]
    roots = tuple(Quantity(node=end) for end in ends)
    return roots[0] if len(roots) == 1 else Items(kind="list", items=roots)


def _between(below: Node, middle: Node, above: Node, opening: str, closing: str) -> Value:
    found = linear(middle)
    if found is None or (letters(below) | letters(above)) & {found[0]}:
        raise NoExpressionError("a chain of relations")
    _, factor, rest = found
    ends = [Quantity(node=quotient(add([end, negative(rest)]), factor)) for end in (below, above)]
    if factor > 0:
        return _interval(opening, ends[0], ends[1], closing)
    turned = {"[": "]", "(": ")", "]": "[", ")": "("}
    return _interval(turned[closing], ends[1], ends[0], turned[opening])


def _is_name(side: tuple[Token, ...]) -> bool:
    """Whether a side of an equation only says what the other side is called."""
    if not side:
        return False
    has_name = any(token.kind in ("letter", "word") for token in side)
    allowed = ("(", ")", ",", "_", "{", "}", "angle", "triangle", "overline", "mathbb", "'")
    is_plain = all(token.kind in ("letter", "word") or token.text in allowed for token in side)
    starts = side[0].kind in ("letter", "word") or side[0].text in ("(", "angle", "overline", "triangle")
    subscripts = any(token.text == "_" for token in side)
    numbers = all(token.kind != "number" or subscripts or "(" in {t.text for t in side} for token in side)
    kinds = {token.kind for token in side}
    is_plain = is_plain or (kinds <= {"letter", "word", "mark", "number"} and _is_indexed(side))
    return has_name and starts and is_plain and numbers


def _is_indexed(side: tuple[Token, ...]) -> bool:
    """A letter with a subscript, or a function's name with a number: ``x_1``, ``f(2)``."""
    texts = [token.text for token in side]
    return side[0].kind == "letter" and len(texts) > 2 and texts[1] in ("_", "(") and "+" not in texts


def _letters_of(side: Sequence[Token]) -> set[str]:
    return {token.text for token in side if token.kind == "letter"} if len(side) == 1 else set()


def _name(side: Sequence[Token]) -> str:
    return "".join(token.text for token in side if token.text not in "{}").casefold()


def _named(value: Value, name: str) -> Value:
    if isinstance(value, Quantity) and value.node == name:
        return value
    return replace(value, name=name) if isinstance(value, Quantity) else value
