"""Relations of an absolute value to a number: ``|2x-1| < 3``."""

from __future__ import annotations

from fractions import Fraction

from treeshare.evals.math_judge.arithmetic import ONE, ZERO, Node, linear


def absolute_value(node: Node) -> tuple[Node, Fraction, Fraction] | None:
    """Of a sum of a number and a multiple of an absolute value, which is linear in one letter.

    Returns:
        What stands between the bars; the number that the absolute value is where the sum is zero; the factor
        of the absolute value. None if the node is something else.
    """
    terms = node[1:] if isinstance(node, tuple) and node[0] == "+" else (node,)
    numbers = [term for term in terms if isinstance(term, Fraction)]
    others = [term for term in terms if not isinstance(term, Fraction)]
    if len(others) != 1 or not isinstance(others[0], tuple):
        return None
    factor, bars = ONE, others[0]
    if bars[0] == "*" and len(bars) == 3 and isinstance(bars[1], Fraction):
        factor, bars = bars[1], bars[2]
    if not isinstance(bars, tuple) or bars[0] != "abs" or linear(bars[1]) is None:
        return None
    return bars[1], -sum(numbers, ZERO) / factor, factor
