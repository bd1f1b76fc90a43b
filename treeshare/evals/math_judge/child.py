"""Compares expressions by sympy: runs in the judge's helper process, never imported by treeshare.

Expressions come as trees, not as text: nothing is parsed by ``eval``. Only what the judge cannot read itself,
sums, products, integrals and limits, comes as LaTeX, for math-verify's parser.
"""

from __future__ import annotations

from typing import Any

MAX_EXPONENT = 2000
MAX_FACTORIAL = 500
DIGITS = 40
POINTS = 4


class RefusedError(Exception):
    """What is not computed, however much time there is."""


def prepare() -> None:
    """Import sympy, which takes a second."""
    import sympy  # noqa: F401


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Whether two expressions are equal, None if nobody can tell, and how it is known."""
    try:
        right, reason = compared(request)
    except RefusedError as error:
        return {"right": False, "reason": str(error)}
    except RecursionError:
        return {"right": False, "reason": "nested too deep"}
    except ModuleNotFoundError as error:
        return {"right": None, "reason": str(error)}
    except MemoryError:
        raise
    except Exception as error:
        return {"right": False, "reason": f"sympy: {type(error).__name__}"}
    return {"right": right, "reason": reason}


def compared(request: dict[str, Any]) -> tuple[bool, str]:
    """Whether two expressions are equal, and how it is known."""
    first, second = built(request["first"]), built(request["second"])
    if request["up_to_factor"]:
        return _proportional(first, second)
    return _equal(first, second)


def _equal(first: Any, second: Any) -> tuple[bool, str]:  # noqa: ANN401
    import sympy

    difference = first - second
    if difference == 0:
        return True, "the same to sympy"
    if _differ_at_a_point(first, second):
        return False, "different values"
    if sympy.expand(difference) == 0:
        return True, "equal when multiplied out"
    if sympy.simplify(difference) == 0 or difference.equals(0):
        return True, "equal when simplified"
    return False, "not proved equal"


def _proportional(first: Any, second: Any) -> tuple[bool, str]:  # noqa: ANN401
    import sympy

    if first == 0 or second == 0:
        return first == second, "one side is always zero"
    ratio = sympy.cancel(sympy.together(first / second))
    if not ratio.free_symbols:
        return bool(ratio.is_nonzero), "a multiple of the other"
    ratio = sympy.simplify(ratio)
    return not ratio.free_symbols, "a multiple of the other" if not ratio.free_symbols else "no multiple"


def _differ_at_a_point(first: Any, second: Any) -> bool:  # noqa: ANN401
    """Whether the values are clearly different somewhere."""
    import sympy

    names = sorted(first.free_symbols | second.free_symbols, key=str)
    for point in range(POINTS if names else 1):
        at = {
            name: sympy.Rational(2 * (7 * point + 3 * place) + 3, 5 + 2 * place + point)
            for place, name in enumerate(names)
        }
        values = [sympy.N(expression.subs(at), DIGITS) for expression in (first, second)]
        if not all(value.is_number and value.is_finite for value in values):
            continue
        scale = max(abs(values[0]), abs(values[1]))
        if abs(values[0] - values[1]) > scale * sympy.Float(10) ** (8 - DIGITS):
            return True
    return False


def built(node: Any) -> Any:  # noqa: ANN401
    """The expression that a tree describes."""
    import sympy

    if isinstance(node, str):
        constants = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "infty": sympy.oo, "degree": sympy.pi / 180}
        return constants.get(node) or sympy.Symbol(node, real=True)
    name, *arguments = node
    if name == "number":
        return sympy.Rational(int(arguments[0], 16), int(arguments[1], 16))
    if name == "latex":
        return _parsed(arguments[0])
    if name == "call":
        return sympy.Function(arguments[0])(*map(built, arguments[1:]))
    values = [built(argument) for argument in arguments]
    if name == "+":
        return sympy.Add(*values)
    if name == "*":
        return sympy.Mul(*values)
    if name == "^":
        return _power(*values)
    return _function(name, values)


def _parsed(text: str) -> Any:  # noqa: ANN401
    """What math-verify's parser makes of LaTeX, computed; its letters are ours."""
    import sympy
    from latex2sympy2_extended import latex2sympy

    found = latex2sympy(text)
    if not isinstance(found, sympy.Expr):
        raise RefusedError("no expression")
    constants = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I}
    ours = {
        letter: constants.get(letter.name) or sympy.Symbol(letter.name, real=True)
        for letter in found.free_symbols
    }
    return found.subs(ours).doit()


def _power(base: Any, exponent: Any) -> Any:  # noqa: ANN401
    import sympy

    size = exponent.as_coeff_Mul()[0]
    if not (size.is_Rational and abs(size) <= MAX_EXPONENT):
        raise RefusedError("a power too large to be compared")
    if not base.is_Atom and exponent.is_Integer and abs(exponent) > 50:
        raise RefusedError("a power too large to be compared")
    return sympy.Pow(base, exponent)


def _function(name: str, values: list[Any]) -> Any:  # noqa: ANN401
    import sympy

    if name in ("factorial", "binomial"):
        if any(value.is_number and not abs(value) <= MAX_FACTORIAL for value in values):
            raise RefusedError("a factorial too large to be compared")
        return getattr(sympy, name)(*values)
    if name == "based":
        raise RefusedError("a number with a base inside an expression")
    functions = {
        "abs": sympy.Abs, "floor": sympy.floor, "ceil": sympy.ceiling, "ln": sympy.log, "log": sympy.log,
        "lg": lambda x: sympy.log(x, 10), "Re": sympy.re, "Im": sympy.im, "arg": sympy.arg,
    }  # fmt: skip
    return (functions.get(name) or getattr(sympy, name))(*values)
