"""What an answer is: words, a number with its unit, a tuple, a set, a list, a matrix, an equation."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from treeshare.evals.math_judge.arithmetic import Node


@dataclass(frozen=True)
class Words:
    """An answer in words.

    Attributes:
        text: In lower case, without brackets and punctuation around it.
    """

    text: str


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """An expression, and what is said beside it.

    Attributes:
        node: The expression.
        unit: In one form, ``degree`` and ``dollar`` too; empty if none is named.
        is_percent: Whether a percent sign is there; ``node`` is the number before it.
        base: The base that a subscript names; None if none is named.
        digits: With a base, the digits.
        name: The left side of ``x = 5``; empty if there is none.
    """

    node: Node
    unit: str = ""
    is_percent: bool = False
    base: int | None = None
    digits: str = ""
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Items:
    """Several values.

    Attributes:
        kind: ``tuple`` has an order and brackets, which make an interval too; ``list``, ``set`` and ``union``
            have no order.
        brackets: Of a tuple; a colon of a ratio.
        items: The values.
    """

    kind: Literal["tuple", "list", "set", "union"]
    brackets: str = ""
    items: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix, whatever its brackets; a determinant's bars are kept apart."""

    is_determinant: bool
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Relation:
    """An equation or inequality that names no single letter's value.

    Attributes:
        kind: ``=``, ``<``, ``le`` or ``ne``: what ``node`` is to zero.
        node: Left side less right side.
    """

    kind: str
    node: Node


@dataclass(frozen=True)
class Unread:
    """What nothing can be made of.

    Attributes:
        reason: Why.
    """

    reason: str


Value: TypeAlias = "Words | Quantity | Items | Matrix | Relation | Unread"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A text and what it is.

    Attributes:
        text: As it was given.
        normal: Its normal form, in which white space, signs of layout and ways to write a token are gone.
        words: Its letters and digits in lower case, for comparing it with words.
        value: What it is.
        other: A second reading, if there is one: commas that part a list rather than thousands, a letter that
            is a unit (``5 m``).
        label: A choice's label that stands in front, ``C`` of ``(C) 55``; the answer is what follows.
    """

    text: str
    normal: str
    words: str
    value: Value
    other: Value | None = None
    label: str = ""


def exact(value: Value) -> Fraction | None:
    """The rational number that a value is, its percent sign ignored; None if it is another."""
    return value.node if isinstance(value, Quantity) and isinstance(value.node, Fraction) else None
