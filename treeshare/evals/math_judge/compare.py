"""Compares two answers by their types; what only symbols can tell is asked of somebody else.

The relation is symmetric. It is not transitive where a part is left out: ``52`` is taken for ``52_8``
and for ``52_7``, ``5`` for ``5 cm`` and for ``5 m``. Strictly compared, what is beside a number must be equal
too: that relation is an equivalence.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from treeshare.evals.math_judge.answers import Answer, Items, Matrix, Quantity, Relation, Unread, Value, Words
from treeshare.evals.math_judge.arithmetic import (
    Node,
    NoValueError,
    TooLargeError,
    add,
    is_unique,
    mul,
    negative,
    up_to_a_factor,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_QUESTIONS = 30
"""Symbolic comparisons for one verdict, at most."""

Layer: TypeAlias = Literal["normal form", "exact numbers", "types", "symbols"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a comparison said.

    Attributes:
        right: Whether both are equal; None if nobody could tell.
        layer: Who said so.
        reason: Why they are not, or how they are.
        gave_up: Whether a limit ended it.
    """

    right: bool | None
    layer: Layer
    reason: str
    gave_up: bool = False


class Symbols(Protocol):
    """Compares expressions by a computer algebra system."""

    def compare(self, first: Node, second: Node, *, up_to_factor: bool = False) -> Outcome:
        """Whether two expressions are equal, or equal but for a number that one is multiplied by."""
        ...


def compare(first: Answer, second: Answer, symbols: Symbols, *, strict: bool = False) -> Outcome:
    """Compare two answers.

    Args:
        first: An answer.
        second: Another one.
        symbols: Asked last.
        strict: Whether units, bases, percent signs and names must be said by both or by none.
    """
    comparison = _Comparison(symbols, strict)
    found = comparison.values(first.value, second.value)
    if found.right or Words in (type(first.value), type(second.value)):
        if not found.right and first.words and first.words == second.words:
            return Outcome(right=True, layer="types", reason="the same words")
        return found
    for one, other in ((first.other, second.value), (first.value, second.other), (first.other, second.other)):
        if one is not None and other is not None and not strict:
            again = comparison.values(one, other)
            if again.right:
                return again
    return found


class _Comparison:
    def __init__(self, symbols: Symbols, strict: bool) -> None:
        self._symbols = symbols
        self._strict = strict
        self._left = MAX_QUESTIONS

    def values(self, a: Value, b: Value) -> Outcome:
        """Compare two values of any type."""
        if isinstance(a, Unread) or isinstance(b, Unread):
            reason = a.reason if isinstance(a, Unread) else b.reason if isinstance(b, Unread) else ""
            return _differ("types", f"not understood: {reason}")
        if isinstance(a, Words) or isinstance(b, Words):
            same = isinstance(a, Words) and isinstance(b, Words) and a.text == b.text
            return _said(same, "types", "the same words" if same else "different words")
        if isinstance(a, Quantity) and isinstance(b, Quantity):
            return self._quantities(a, b)
        if isinstance(a, Relation) or isinstance(b, Relation):
            return self._relations(a, b)
        if isinstance(a, Matrix) and isinstance(b, Matrix):
            return self._matrices(a, b)
        if isinstance(a, Items) and isinstance(b, Items):
            return self._items(a, b)
        return self._single_item(a, b)

    # --- numbers and expressions ---

    def _quantities(self, a: Quantity, b: Quantity) -> Outcome:
        conflict = self._conflict(a, b)
        if conflict:
            return _differ("types", conflict)
        if a.base is not None or b.base is not None:
            same = _digits(a) == _digits(b)
            return _said(same, "exact numbers", "the same digits" if same else "other digits")
        if a.is_percent != b.is_percent:
            percent, number = (a, b) if a.is_percent else (b, a)
            found = self.nodes(percent.node, number.node)
            if found.right:
                return found
            return self.nodes(mul([percent.node, Fraction(1, 100)]), number.node)
        return self.nodes(a.node, b.node)

    def _conflict(self, a: Quantity, b: Quantity) -> str:
        """What is said beside the expressions and cannot be of one answer."""
        for what, first, second in (
            ("units", a.unit, b.unit),
            ("bases", a.base, b.base),
            ("names", a.name, b.name),
            ("percent signs", a.is_percent, b.is_percent),
        ):
            if first == second:
                continue
            is_loose = what == "names" and (_is_loose(a.name) or _is_loose(b.name))
            if self._strict or (first and second and not is_loose):
                return f"other {what}: {first or 'none'} and {second or 'none'}"
        return ""

    def nodes(self, a: Node, b: Node) -> Outcome:
        """Compare two expressions."""
        if a == b:
            return _said(True, "exact numbers", f"both are {shown(a)}")
        if is_unique(a) and is_unique(b):
            return _differ("exact numbers", f"{shown(a)} is not {shown(b)}")
        return self._ask(a, b)

    def _ask(self, a: Node, b: Node, *, up_to_factor: bool = False) -> Outcome:
        """Ask for symbols, so many times for one verdict and not again after a limit was met."""
        if not self._left:
            return _differ("symbols", "not looked at after so many others")
        self._left -= 1
        found = self._symbols.compare(a, b, up_to_factor=up_to_factor)
        if found.gave_up:
            self._left = 0
        return found

    # --- equations ---

    def _relations(self, a: Value, b: Value) -> Outcome:
        first, second = _as_relation(a), _as_relation(b)
        if first is None or second is None or first.kind != second.kind:
            return _differ("types", f"{kind_of(a)} and {kind_of(b)}")
        try:
            if first.kind in ("=", "ne"):
                same = up_to_a_factor(first.node) == up_to_a_factor(second.node)
            else:
                same = first.node == second.node
        except (NoValueError, TooLargeError) as error:
            return _differ("exact numbers", str(error))
        if same:
            return _said(True, "exact numbers", "the same relation")
        if first.kind in ("=", "ne"):
            return self._ask(first.node, second.node, up_to_factor=True)
        return self._ask(first.node, second.node)

    # --- several values ---

    def _items(self, a: Items, b: Items) -> Outcome:
        if "tuple" in (a.kind, b.kind):
            if a.kind != b.kind:
                return self._single_item(a, b)
            if a.brackets != b.brackets:
                return _differ("types", f"other brackets: {a.brackets} and {b.brackets}")
            return self._in_order(a.items, b.items)
        if a.kind != b.kind and ("union" in (a.kind, b.kind) or self._strict):
            return _differ("types", f"{kind_of(a)} and {kind_of(b)}")
        if "set" in (a.kind, b.kind):
            return self._in_any_order(_distinct(a.items), _distinct(b.items))
        return self._in_any_order(a.items, b.items)

    def _in_order(self, a: Sequence[Value], b: Sequence[Value]) -> Outcome:
        if len(a) != len(b):
            return _differ("types", f"{len(a)} and {len(b)} items")
        found = Outcome(right=True, layer="types", reason="no items")
        for first, second in zip(a, b, strict=True):
            found = self.values(first, second)
            if not found.right:
                return found
        return replace(found, reason="the same items in one order")

    def _in_any_order(self, a: Sequence[Value], b: Sequence[Value]) -> Outcome:
        if len(a) != len(b):
            return _differ("types", f"{len(a)} and {len(b)} items")
        ours, theirs = Counter(a), Counter(b)
        left, others = list((ours - theirs).elements()), list((theirs - ours).elements())
        layer: Layer = "types"
        for item in left:
            found: Outcome | None = None
            for place, other in enumerate(others):
                found = self.values(item, other)
                if found.right:
                    layer = "symbols" if found.layer == "symbols" else layer
                    del others[place]
                    break
            if found is None or not found.right:
                undecided = found is not None and found.right is None
                reason = found.reason if found is not None and len(left) == 1 else "an item has no equal"
                return Outcome(right=None if undecided else False, layer="types", reason=reason)
        return Outcome(right=True, layer=layer, reason="the same items")

    def _matrices(self, a: Matrix, b: Matrix) -> Outcome:
        shapes = [[len(row) for row in matrix.rows] for matrix in (a, b)]
        if shapes[0] != shapes[1] or a.is_determinant != b.is_determinant:
            return _differ("types", "matrices of other shapes")
        cells = [[cell for row in matrix.rows for cell in row] for matrix in (a, b)]
        return self._in_order(cells[0], cells[1])

    def _single_item(self, a: Value, b: Value) -> Outcome:
        """A set or a list of one item is that item, unless compared strictly."""
        for one, other in ((a, b), (b, a)):
            if isinstance(one, Items) and one.kind != "tuple" and len(one.items) == 1 and not self._strict:
                return self.values(one.items[0], other)
        return _differ("types", f"{kind_of(a)} and {kind_of(b)}")


def kind_of(value: Value) -> str:
    """The type of a value in words."""
    if isinstance(value, Items):
        return f"a {value.kind}"
    if isinstance(value, Quantity):
        return "a number" if isinstance(value.node, Fraction) else "an expression"
    return {Words: "words", Matrix: "a matrix", Relation: "a relation", Unread: "nothing"}[type(value)]


def shown(node: Node) -> str:
    """A node for people."""
    text = str(node) if isinstance(node, (str, Fraction)) else _written(node)
    return text if len(text) <= 80 else text[:77] + "..."


def _written(node: Node) -> str:
    if not isinstance(node, tuple):
        return str(node)
    name, *arguments = node
    if name in ("+", "*"):
        return "(" + f" {name} ".join(map(_written, arguments)) + ")"
    if name == "^":
        return f"{_written(arguments[0])}^{_written(arguments[1])}"
    return f"{name}({', '.join(map(_written, arguments))})"


def _differ(layer: Layer, reason: str) -> Outcome:
    return Outcome(right=False, layer=layer, reason=reason)


def _said(right: bool, layer: Layer, reason: str) -> Outcome:
    return Outcome(right=right, layer=layer, reason=reason)


def _digits(value: Quantity) -> str | None:
    if value.base is not None:
        return value.digits
    is_whole = isinstance(value.node, Fraction) and value.node.denominator == 1
    return str(value.node) if is_whole else None


def _is_loose(name: str) -> bool:
    """Whether a name is more than a letter: how an answer's quantity is called is not the answer."""
    return len(name) != 1


def _as_relation(value: Value) -> Relation | None:
    if isinstance(value, Relation):
        return value
    if isinstance(value, Quantity) and len(value.name) == 1 and not value.unit:
        return Relation(kind="=", node=add([value.name, negative(value.node)]))
    return None


def _distinct(items: Sequence[Value]) -> tuple[Value, ...]:
    return tuple(dict.fromkeys(items))
