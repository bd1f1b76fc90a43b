"""Imports in front of programs: the program finds every name that the grader imports, and nothing moves."""

from __future__ import annotations

import ast

import pytest

from treeshare.tasks.preludes import GRADER, STARTER

PUBLISHED = """\
import sys, time, itertools, collections, math, fractions, random, heapq
from itertools import accumulate, product, permutations, combinations
from collections import Counter, OrderedDict, deque, defaultdict, ChainMap
from functools import lru_cache
from math import sqrt, sin, cos, tan, ceil, fabs, floor, gcd, exp, log, log2
from typing import List, Tuple
import numpy as np
from heapq import *
from sys import stdin, stdout
"""
"""The grader's imports as it publishes them, and the two streams that it names for programs that read."""


def names_of(imports):
    space = {}
    exec(imports, space)
    return {name: value for name, value in space.items() if name != "__builtins__"}


def test_every_name_that_the_grader_imports():
    published = names_of(PUBLISHED)
    for name, value in published.items():
        program = f"found = {name}"
        for imports in (GRADER, STARTER):
            if imports is STARTER and name in ("stdin", "stdout"):
                continue
            assert names_of(imports.before(program))["found"] is value, name
    together = "found = [" + ", ".join(published) + "]"
    assert names_of(GRADER.before(together))["found"] == list(published.values())


def test_starter_code_finds_its_types_and_other_usual_names():
    types = "def f(a: Optional[List[int]], b: Deque[str]) -> Any:\n"
    program = types + "    return reduce(bisect.insort, re.findall('', string.digits))"
    names = names_of(STARTER.before(program))
    assert {"Optional", "List", "Deque", "Any", "reduce", "bisect", "re", "string"} <= names.keys()
    assert names_of(STARTER.before("found = Counter"))["found"].__module__ == "collections"


def test_nothing_is_imported_that_no_name_asks_for():
    for program in ("print(input())", "x = 'n p'\nimportant = mathematics = 1", ""):
        assert GRADER.before(program) == STARTER.before(program) == program
    assert GRADER.before("print(math.pi)") == "import math\nprint(math.pi)"


PLACES = [
    ('"""Text."""\nfrom __future__ import annotations\n', "print(math.pi)\n"),
    (
        "from __future__ import (annotations,\n    division)  # both\nfrom __future__ import generators\n",
        "math.pi\n",
    ),
    (
        "# -*- coding: utf-8 -*-\n\n'''two\nlines'''\n\nfrom __future__ import annotations\n",
        "\nx: Row = math.pi\n",
    ),
    ("from __future__ import annotations; y = 1\n", "x = math.pi"),
    ("", "'''from __future__ import annotations'''; x = math.pi"),
    ("", "x = math.pi  # __future__"),
    ("'text'\n", "x = math.pi  # __future__"),
]


@pytest.mark.parametrize(("head", "body"), PLACES)
def test_future_imports_stay_in_front(head, body):
    program = GRADER.before(head + body)
    assert program == f"{head}import math\n{body}"
    compile(program, "program", "exec")
    assert ast.get_docstring(ast.parse(program)) == (ast.get_docstring(ast.parse(head)) if head else None)


def test_a_future_import_alone_without_a_line_end():
    assert GRADER.before("from __future__ import annotations  # math") == (
        "from __future__ import annotations  # math\nimport math\n"
    )


@pytest.mark.parametrize(
    "broken",
    [
        "'''__future__ math",
        "from __future__ import (math",
        "  __future__\n math\n  $",
        "__future__ math \x00",
        "(" * 999,
    ],
)
def test_what_is_no_python_stays_so(broken):
    """The verdict is the interpreter's, not ours."""
    with pytest.raises((SyntaxError, ValueError)):
        compile(GRADER.before(broken), "program", "exec")


def test_a_byte_order_mark_does_not_get_inside():
    assert GRADER.before("\ufeffprint(math.pi)") == "import math\nprint(math.pi)"
