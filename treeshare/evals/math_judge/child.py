"""Compares expressions by sympy: the program of the judge's child process, never imported by treeshare.

It reads one JSON line after the other and answers each by one. Expressions come as trees, not as text: nothing is
parsed by ``eval``. Its memory is limited by the kernel from the start; processor time for each request by a
signal that ends it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from typing import Any

MAX_EXPONENT = 2000
MAX_FACTORIAL = 500
DIGITS = 40
POINTS = 4


class RefusedError(Exception):
    """What is not computed, however much time there is."""


def main() -> None:
    """Answer requests until there are no more."""
    memory_bytes, parent = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        import sympy  # noqa: F401
    except ImportError as error:
        _answer({"missing": str(error)})
        return
    _answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime + request["cpu_s"]) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            right, reason = compared(request)
        except RefusedError as error:
            right, reason = False, str(error)
        except MemoryError:
            _answer({"right": False, "reason": "more memory than is allowed"})
            return
        except RecursionError:
            right, reason = False, "nested too deep"
        except Exception as error:
            right, reason = False, f"sympy: {type(error).__name__}"
        _answer({"right": right, "reason": reason})


def compared(request: dict[str, Any]) -> tuple[bool, str]:
    """Whether two expressions are equal, and how it is known."""
    first, second = built(request["first"]), built(request["second"])
    if request["up_to_factor"]:
        return _proportional(first, second)
    return _equal(first, second)


def _equal(first: Any, second: Any) -> tuple[bool, str]:  # noqa: ANN401
    import sympy

    difference = first - second
    if difference == 0 or sympy.expand(difference) == 0:
        return True, "equal when multiplied out"
    if _differ_at_a_point(first, second):
        return False, "different values"
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


def _answer(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _end_with(parent: int) -> None:
    """End when the judge's process is gone, in the middle of whatever is computed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)


if __name__ == "__main__":
    main()
