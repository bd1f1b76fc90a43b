"""Functions of several numbers: greatest and least, common divisors and multiples, remainders."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from treeshare.evals.math_judge.arithmetic import NoValueError, bounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.evals.math_judge.arithmetic import Node

OF_SEVERAL = ("gcd", "lcm", "max", "min")
_MAX_LCM_ARGUMENTS = 100


def of_several(name: str, arguments: Sequence[Node]) -> Node:
    """The value of one of ``OF_SEVERAL``; the call as it is written where an argument is no known number.

    Raises:
        TooLargeError: If the value is too large.
    """
    numbers = [argument for argument in arguments if isinstance(argument, Fraction)]
    call = ("call", name, *sorted(arguments, key=repr))
    if len(numbers) < len(arguments):
        return call
    if name in ("max", "min"):
        return max(numbers) if name == "max" else min(numbers)
    if any(number.denominator != 1 for number in numbers):
        return call
    if name == "gcd":
        return Fraction(math.gcd(*(number.numerator for number in numbers)))
    if len(numbers) > _MAX_LCM_ARGUMENTS:
        return call
    multiple = Fraction(1)
    for number in numbers:
        multiple = bounded(Fraction(math.lcm(multiple.numerator, number.numerator)))
    return multiple


def remainder(number: Node, modulus: Node) -> Node:
    """``number mod modulus``, of the modulus' sign; as it is written where one is no known whole number.

    Raises:
        NoValueError: If the modulus is zero.
    """
    if modulus == 0:
        raise NoValueError("a remainder of division by zero")
    is_known = all(isinstance(side, Fraction) and side.denominator == 1 for side in (number, modulus))
    return number % modulus if is_known else ("call", "mod", number, modulus)  # type: ignore[operator]
