"""Imports that are put before a program, if it uses their names.

The published graders of APPS and LiveCodeBench put all of their imports before every program. Here those
of APPS are written whose names occur in the program, and those of LiveCodeBench where it uses a name that it
does not define: they would take longer than most programs.
"""

from __future__ import annotations

import io
import re
import tokenize
import typing
from dataclasses import dataclass, field

from treeshare.evals.replies import free_names

_WORD = re.compile(r"[^\W\d]\w*")
_NUMPY = "try:\n    import numpy as np\nexcept ImportError:\n    pass\n"


@dataclass(frozen=True, kw_only=True)
class Imports:
    """Names that a program finds without having imported them.

    Attributes:
        modules: Modules by their own names.
        names: Per module, names out of it.
        statements: Other names, and what defines each.
    """

    modules: frozenset[str]
    names: dict[str, tuple[str, ...]]
    statements: dict[str, str] = field(default_factory=dict)

    def before(self, program: str) -> str:
        """The program with the imports that it needs in front, after its docstring and future imports."""
        words = set(_WORD.findall(program))
        lines = [f"import {module}\n" for module in sorted(self.modules & words)]
        for module, names in self.names.items():
            if used := sorted(words.intersection(names)):
                lines.append(f"from {module} import {', '.join(used)}\n")
        lines += [statement for name, statement in self.statements.items() if name in words]
        return _put_before(program, "".join(lines))


def _put_before(program: str, lines: str) -> str:
    """A program with lines in front, after its docstring and future imports."""
    if not lines:
        return program
    program = program.removeprefix("\ufeff")
    place = _body(program) if "__future__" in program else 0
    gap = "" if program[:place].endswith("\n") or not place else "\n"
    return f"{program[:place]}{gap}{lines}{program[place:]}"


_STARRED = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json"),
)
_LIVECODEBENCH = "".join(
    [
        *(f"from {module} import *\n" for module in (*_STARRED, "builtins", "typing")),
        *(f"import {module}\n" for module in _STARRED),
    ]
)


def before_livecodebench(program: str) -> str:
    """The program as LiveCodeBench's grader runs it: deep recursion, and imports where one is needed."""
    needed = _LIVECODEBENCH if free_names(program) else "import sys\n"
    return _put_before(program, f"{needed}sys.setrecursionlimit(50000)\n")


_HEAPQ = ("heapify", "heappop", "heappush", "heappushpop", "heapreplace", "merge", "nlargest", "nsmallest")
_MATH = ("ceil", "cos", "exp", "fabs", "floor", "gcd", "log", "log2", "sin", "sqrt", "tan")

GRADER = Imports(
    modules=frozenset({"collections", "fractions", "heapq", "itertools", "math", "random", "sys", "time"}),
    names={
        "collections": ("ChainMap", "Counter", "OrderedDict", "defaultdict", "deque"),
        "functools": ("lru_cache",),
        "heapq": _HEAPQ,
        "itertools": ("accumulate", "combinations", "permutations", "product"),
        "math": _MATH,
        "typing": ("List", "Tuple"),
    },
    statements={
        "np": _NUMPY,
        "stdin": "from sys import stdin\n",
        "stdout": "from sys import stdout\n",
    },
)
"""What the published grader imports; for programs that read standard input also its two streams."""

_TYPES = tuple(name for name in typing.__all__ if name not in GRADER.names["collections"])

STARTER = Imports(
    modules=GRADER.modules | {"bisect", "functools", "re", "string"},
    names=GRADER.names | {"functools": ("lru_cache", "reduce"), "typing": _TYPES},
    statements={"np": _NUMPY},
)
"""The same and more for functions that are called: starter code names types that it does not import."""


def _body(program: str) -> int:
    """Where the statements begin that follow the docstring and the future imports; 0 if it is no Python."""
    ends = [0]
    for line in io.StringIO(program):
        ends.append(ends[-1] + len(line))
    place, statement = 0, list[tokenize.TokenInfo]()
    try:
        for token in tokenize.generate_tokens(io.StringIO(program).readline):
            if token.type in (tokenize.COMMENT, tokenize.NL):
                continue
            if token.type != tokenize.NEWLINE:
                statement.append(token)
                continue
            is_docstring = not place and all(part.type == tokenize.STRING for part in statement)
            is_future = [part.string for part in statement[:2]] == ["from", "__future__"]
            if not is_docstring and not is_future:
                break
            place, statement = ends[token.start[0]], []
    except (tokenize.TokenError, SyntaxError):
        pass
    return place
