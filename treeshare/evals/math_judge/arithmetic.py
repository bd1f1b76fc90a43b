"""Exact arithmetic on expressions, within bounds: sums, products and powers are put into one form.

A node is a rational number, a letter or a name, or a tuple ``(operation, *arguments)``. In this form many
equal expressions are the same node: terms are collected and sorted, square factors are taken out of roots,
denominators are made rational. Nothing larger than ``MAX_BITS`` is computed: a power beyond stays as it is
written.

Where a node is a sum of monomials in letters and roots of square-free numbers, the form is unique
(``is_unique``): two nodes that differ are not equal.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterable

Node: TypeAlias = "Fraction | str | tuple[Any, ...]"

MAX_BITS = 12_000
"""Of a numerator or a denominator: about 3,600 digits."""

_MAX_PRIME = 1000
_FULLY_FACTORED = 10**9
"""Below it, what is left after division by all primes up to ``_MAX_PRIME`` has at most two prime factors."""
_MAX_FACTORIAL = 1000

ZERO, ONE, HALF = Fraction(0), Fraction(1), Fraction(1, 2)
IMAGINARY = "i"
CONSTANTS = frozenset(("pi", "e", "i", "infty", "degree"))
"""Names that are no variables."""


class NoValueError(ValueError):
    """What is written has no value, such as a division by zero."""


class TooLargeError(ValueError):
    """A number beyond ``MAX_BITS``."""


def bounded(number: Fraction) -> Fraction:
    """The number itself.

    Raises:
        TooLargeError: If it is beyond ``MAX_BITS``.
    """
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > MAX_BITS:
        raise TooLargeError(f"a number of more than {MAX_BITS} bits")
    return number


def add(terms: Iterable[Node]) -> Node:
    """The sum."""
    coefficients: dict[Node, Fraction] = {}
    for term in _flattened("+", terms):
        coefficient, rest = _split(term)
        coefficients[rest] = bounded(coefficients.get(rest, ZERO) + coefficient)
    found = [_scaled(rest, coefficient) for rest, coefficient in coefficients.items() if coefficient]
    return _operation("+", found, ZERO)


def mul(factors: Iterable[Node]) -> Node:
    """The product; a number is multiplied into a single sum."""
    number, radicand = ONE, 1
    exponents: dict[Node, Node] = {}
    for factor in _flattened("*", factors):
        if isinstance(factor, Fraction):
            number = bounded(number * factor)
            continue
        base, exponent = _base(factor)
        if exponent == HALF and isinstance(base, Fraction) and base.denominator == 1:
            radicand *= base.numerator
            bounded(Fraction(radicand))
            continue
        exponents[base] = add([exponents.get(base, ZERO), exponent])
    if radicand != 1:
        outside, inside = _without_squares(radicand)
        number = bounded(number * outside)
        if inside != 1:
            exponents[Fraction(inside)] = add([exponents.get(Fraction(inside), ZERO), HALF])
    powers = [power(base, exponent) for base, exponent in exponents.items() if exponent != ZERO]
    if any(isinstance(found, Fraction) or _is(found, "*") for found in powers):
        return mul([number, *powers])
    if number == ZERO:
        return ZERO
    if len(powers) == 1 and _is(powers[0], "+") and number != ONE:
        return add(mul([number, term]) for term in powers[0][1:])
    found = sorted(powers, key=repr)
    return _operation("*", found if number == ONE else [number, *found], ONE, is_sorted=True)


def power(base: Node, exponent: Node) -> Node:
    """A power; left as it is written where its value would be too large, or is not known.

    Raises:
        NoValueError: Of zero to a negative number.
    """
    if exponent == ONE:
        return base
    if isinstance(exponent, Fraction):
        if exponent == ZERO and base != ZERO:
            return ONE
        if isinstance(base, Fraction):
            return _power_of_number(base, exponent)
        if exponent.denominator == 1:
            return _whole_power(base, int(exponent))
    return ("^", base, exponent)


def root(radicand: Node, degree: Node) -> Node:
    """A root; of a negative number and an odd degree the real one."""
    if not isinstance(degree, Fraction) or degree == ZERO:
        return power(radicand, power(degree, Fraction(-1)))
    is_odd = degree.denominator == 1 and degree.numerator % 2 == 1
    if isinstance(radicand, Fraction) and radicand < 0 and is_odd:
        return mul([Fraction(-1), power(-radicand, 1 / degree)])
    return power(radicand, 1 / degree)


def negative(node: Node) -> Node:
    """The node times -1."""
    return mul([Fraction(-1), node])


def quotient(above: Node, below: Node) -> Node:
    """A fraction.

    Raises:
        NoValueError: If zero is below.
    """
    return mul([above, power(below, Fraction(-1))])


def factorial(node: Node) -> Node:
    """A factorial; of a large number as it is written."""
    if isinstance(node, Fraction) and node.denominator == 1 and 0 <= node <= _MAX_FACTORIAL:
        return bounded(Fraction(math.factorial(int(node))))
    return ("factorial", node)


def binomial(total: Node, chosen: Node) -> Node:
    """A binomial coefficient; of large numbers as it is written."""
    numbers = (total, chosen)
    if all(isinstance(n, Fraction) and n.denominator == 1 and 0 <= n <= _MAX_FACTORIAL for n in numbers):
        return Fraction(math.comb(int(total), int(chosen)))  # type: ignore[arg-type]
    return ("binomial", total, chosen)


def logarithm(argument: Node, base: Node) -> Node:
    """A logarithm; a whole number where it is one."""
    if isinstance(argument, Fraction) and isinstance(base, Fraction) and argument > 0 and base > 1:
        size = 1 / argument if argument < 1 else argument
        found, value = 0, ONE
        while value < size:
            found, value = found + 1, value * base
        if value == size:
            return Fraction(-found if argument < 1 else found)
    return ("log", argument, base)


def with_logarithms(node: Node, base: Node | None) -> Node:
    """An expression whose logarithms without a base have this one; None makes them natural."""
    if not isinstance(node, tuple):
        return node
    operation, *arguments = node
    if operation in ("call", "latex", "based"):
        return node
    found = [with_logarithms(argument, base) for argument in arguments]
    if operation == "log" and len(found) == 1:
        return ("ln", found[0]) if base is None else logarithm(found[0], base)
    if found == arguments:
        return node
    if operation in ("+", "*"):
        return add(found) if operation == "+" else mul(found)
    return power(*found) if operation == "^" else (operation, *found)


def linear(node: Node) -> tuple[str, Fraction, Node] | None:
    """The letter, its factor and what is added, of a node that is linear in its only letter; else None."""
    variables = letters(node) - CONSTANTS
    if len(variables) != 1:
        return None
    (letter,) = variables
    factor, rest = ZERO, []
    for term in node[1:] if _is(node, "+") else (node,):
        coefficient, other = _split(term)
        if other == letter:
            factor = coefficient
        elif letter in letters(term):
            return None
        else:
            rest.append(term)
    return (letter, factor, add(rest)) if factor else None


def is_unique(node: Node) -> bool:
    """Whether a node that differs from this one, and is unique too, is not equal to it."""
    terms = node[1:] if _is(node, "+") else (node,)
    return all(_is_monomial(term) for term in terms)


def up_to_a_factor(node: Node, *, keeps_sign: bool = False) -> Node:
    """The node divided by the number before its first term, or by that number's size."""
    first = node[1] if _is(node, "+") else node
    coefficient, _ = _split(first)
    coefficient = abs(coefficient) if keeps_sign else coefficient
    return node if coefficient == ZERO else mul([1 / coefficient, node])


def letters(node: Node) -> set[str]:
    """The letters in it."""
    if isinstance(node, str):
        return {node}
    found: set[str] = set()
    if isinstance(node, tuple):
        for argument in node[1:]:
            found |= letters(argument)
    return found


def _is(node: Node, operation: str) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(node, tuple) and node[0] == operation


def _operation(name: str, arguments: list[Node], neutral: Fraction, *, is_sorted: bool = False) -> Node:
    if not arguments:
        return neutral
    if len(arguments) == 1:
        return arguments[0]
    return (name, *(arguments if is_sorted else sorted(arguments, key=repr)))


def _flattened(operation: str, nodes: Iterable[Node]) -> Iterable[Node]:
    for node in nodes:
        if _is(node, operation):
            yield from node[1:]
        else:
            yield node


def _split(term: Node) -> tuple[Fraction, Node]:
    """The number before a term, and the rest."""
    if isinstance(term, Fraction):
        return term, ONE
    if _is(term, "*") and isinstance(term[1], Fraction):
        rest = term[2:]
        return term[1], rest[0] if len(rest) == 1 else ("*", *rest)
    return ONE, term


def _scaled(rest: Node, coefficient: Fraction) -> Node:
    if rest == ONE:
        return coefficient
    if coefficient == ONE:
        return rest
    inner = rest[1:] if _is(rest, "*") else (rest,)
    return ("*", coefficient, *inner)


def _base(factor: Node) -> tuple[Node, Node]:
    if _is(factor, "^"):
        return factor[1], factor[2]
    return factor, ONE


def _whole_power(base: Node, exponent: int) -> Node:
    """A whole power of what is no number."""
    if base == IMAGINARY:
        sign = Fraction(-1 if exponent % 4 >= 2 else 1)
        return mul([sign, IMAGINARY]) if exponent % 2 else sign
    if _is(base, "*"):
        return mul(power(factor, Fraction(exponent)) for factor in base[1:])
    if _is(base, "^"):
        return power(base[1], mul([base[2], Fraction(exponent)]))
    return ("^", base, Fraction(exponent))


def _power_of_number(base: Fraction, exponent: Fraction) -> Node:
    if base == ZERO:
        if exponent < 0:
            raise NoValueError("a division by zero")
        return ZERO if exponent > 0 else ("^", base, exponent)
    if exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(base) != 1 and bits * abs(exponent.numerator) > MAX_BITS:
            return ("^", base, exponent)
        return Fraction(base ** int(exponent % 2 if abs(base) == 1 else exponent))
    if exponent.denominator == 2:
        return _power_of_root(base, exponent)
    exact = _exact_root(base, exponent.denominator)
    if exact is not None:
        return _power_of_number(exact, Fraction(exponent.numerator))
    return ("^", base, exponent)


def _power_of_root(base: Fraction, exponent: Fraction) -> Node:
    """A number to a half of an odd number: a square root times a number."""
    whole = power(base, exponent - HALF)
    if not isinstance(whole, Fraction):
        return ("^", base, exponent)
    radicand = base.numerator * base.denominator
    outside, inside = _without_squares(abs(radicand))
    number = bounded(whole * outside / base.denominator)
    factors: list[Node] = [number] if number != ONE else []
    factors += [("^", Fraction(inside), HALF)] if inside != 1 else []
    factors += [IMAGINARY] if radicand < 0 else []
    front = factors[:1] if factors and isinstance(factors[0], Fraction) else []
    return _operation("*", front + sorted(factors[len(front) :], key=repr), ONE, is_sorted=True)


def _without_squares(radicand: int) -> tuple[int, int]:
    """``outside, inside`` with ``outside**2 * inside == radicand``; small squares are all outside."""
    outside, inside, rest = 1, 1, radicand
    for prime in range(2, _MAX_PRIME):
        if prime * prime > rest:
            break
        times = 0
        while rest % prime == 0:
            rest //= prime
            times += 1
        outside *= prime ** (times // 2)
        inside *= prime ** (times % 2)
    whole = math.isqrt(rest)
    if whole * whole == rest:
        return outside * whole, inside
    return outside, inside * rest


def _exact_root(base: Fraction, degree: int) -> Fraction | None:
    """The rational root of a positive number, if there is one."""
    if base < 0 or degree > 64:
        return None
    above, below = (_whole_root(part, degree) for part in (base.numerator, base.denominator))
    return None if above is None or below is None else Fraction(above, below)


def _whole_root(number: int, degree: int) -> int | None:
    low, high = 0, 1 << (number.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**degree <= number:
            low = middle
        else:
            high = middle - 1
    return low if low**degree == number else None


def _is_monomial(term: Node) -> bool:
    factors = term[1:] if _is(term, "*") else (term,)
    for factor in factors:
        if isinstance(factor, Fraction):
            continue
        base, exponent = _base(factor)
        is_whole = isinstance(exponent, Fraction) and exponent.denominator == 1
        is_letter = isinstance(base, str) and base not in ("infty", "degree") and is_whole
        is_root = exponent == HALF and isinstance(base, Fraction) and 0 < base < _FULLY_FACTORED
        if not (is_letter or is_root):
            return False
    return True
