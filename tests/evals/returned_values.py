"""Functions of honest programs with an assertion on each; ``f`` stands for the function in it.

What is right is what the assertion says when it stands in the program's own process.
"""

# ruff: noqa: E501  (a case reads better on one line)

from __future__ import annotations

HONEST: list[tuple[str, str]] = [
    # plain values
    ("return 3", "assert f() == 3"),
    ("return 3.0", "assert f() == 3"),
    ("return True", "assert f() == 1"),
    ("return 1", "assert f() is True"),
    ("return True", "assert f() is True"),
    ("return None", "assert f() is None"),
    ("return -0.0", "assert str(f()) == '-0.0'"),
    ("return float('inf'), float('-inf')", "assert f() == (float('inf'), -float('inf'))"),
    ("import math; return [math.nan]", "import math; assert f() == [math.nan]"),
    ("return float('nan')", "x = f(); assert x != x"),
    ("return a[0]", "x = float('nan'); assert f([x]) == [x]"),
    ("return 1 << 40000", "assert f() == 1 << 40000"),
    ("return -(10 ** 5000)", "assert f() == -(10 ** 5000)"),
    ("return [10 ** 700, 2 ** 64, -(2 ** 63)]", "assert f() == [10 ** 700, 2 ** 64, -(2 ** 63)]"),
    ("return 2 - 3j", "assert f() == 2 - 3j"),
    ("return complex(float('nan'), 1)", "assert f().imag == 1"),
    ("return 'a\\ud800\\n\\0\"\\\\\U0001f600'", "assert f() == 'a\\ud800\\n\\0\"\\\\\U0001f600'"),
    ("return bytes(range(256))", "assert f() == bytes(range(256))"),
    ("return bytearray(b'ab')", "assert f() == b'ab' and type(f()) is bytearray"),
    ("return memoryview(b'ab')", "assert f() == b'ab'"),
    ("return [1, [2, (3, {4})]]", "assert f() == [1, [2, (3, {4})]]"),
    ("return (1, 2)", "assert f() == [1, 2]"),
    ("return {1: 'a', (2, 3): None, 'b': {}}", "assert f() == {'b': {}, (2, 3): None, 1: 'a'}"),
    ("return {'b': 1, 'a': 2}", "assert list(f()) == ['b', 'a']"),
    ("return {frozenset({1}), frozenset()}", "assert f() == {frozenset(), frozenset({1})}"),
    ("return set('abc')", "assert sorted(f()) == ['a', 'b', 'c'] and 'a' in f() and 'd' not in f()"),
    ("return range(3)", "assert f() == range(3) and list(f()) == [0, 1, 2]"),
    ("return range(3)", "assert f() == [0, 1, 2]"),
    ("return slice(1, None), ...", "assert f() == (slice(1, None), ...)"),
    ("return int, [str]", "assert f() == (int, [str])"),
    ("return (0,), (1, 0), ((2,), 3)", "assert f() == ((0,), (1, 0), ((2,), 3))"),
    # the same object in several places, in itself, and very deep
    ("x = [1]; return [x, x]", "r = f(); assert r[0] is r[1]; r[0].append(2); assert r == [[1, 2], [1, 2]]"),
    ("x = [1]; x.append(x); return x", "r = f(); assert r[1] is r"),
    ("x = {}; t = (x,); x[0] = t; return t", "r = f(); assert r[0][0] is r"),
    (
        "x = []\n    for _ in range(5000): x = [x]\n    return x",
        "r, n = f(), 0\nwhile r: r, n = r[0], n + 1\nassert n == 5000",
    ),
    (
        "x = ()\n    for _ in range(5000): x = (x,)\n    return x",
        "r, n = f(), 0\nwhile r: r, n = r[0], n + 1\nassert n == 5000",
    ),
    ("return list(range(20000))", "assert f() == list(range(20000))"),
    ("return tuple((i,) for i in range(20000))", "assert f() == tuple((i,) for i in range(20000))"),
    (
        "x = [(i,) for i in range(20000)]; return x, frozenset(x)",
        "r = f(); assert r[1] == set(r[0]) == {(i,) for i in range(20000)}",
    ),
    # containers of the standard library
    (
        "from collections import Counter; return Counter('aab')",
        "assert f() == {'a': 2, 'b': 1} and f()['z'] == 0 and f().most_common(1) == [('a', 2)]",
    ),
    (
        "from collections import Counter; return Counter(a=1, b=0)",
        "from collections import Counter; assert f() == Counter(a=1)",
    ),
    (
        "from collections import OrderedDict as O; x = O(a=1, b=2); x.move_to_end('a'); return x",
        "from collections import OrderedDict as O; assert f() != O(a=1, b=2) and f() == dict(a=1, b=2) and list(f()) == ['b', 'a']",
    ),
    (
        "from collections import defaultdict; x = defaultdict(list); x[1].append(2); return x",
        "assert f() == {1: [2]} and f()[3] == []",
    ),
    (
        "from collections import defaultdict; return defaultdict(lambda: 7)",
        "assert f() == {} and f()[3] == 7",
    ),
    (
        "from collections import deque; return deque([1, 2, 3], maxlen=2)",
        "x = f(); assert list(x) == [2, 3]; x.append(4); assert list(x) == [3, 4]",
    ),
    ("from collections import deque; return deque([1])", "assert f() == [1]"),
    (
        "from collections import namedtuple; return namedtuple('P', 'x y')(1, 2)",
        "assert f() == (1, 2) and f().y == 2",
    ),
    (
        "from collections import UserList, UserDict, UserString, ChainMap; return UserList([1]), UserDict(a=1), UserString('a'), ChainMap({1: 2}, {3: 4})",
        "assert f() == ([1], {'a': 1}, 'a', {1: 2, 3: 4})",
    ),
    ("from types import MappingProxyType; return MappingProxyType({1: 2})", "assert f() == {1: 2}"),
    ("return {1: 2}.keys(), {1: 2}.items()", "assert f() == ({1}, {(1, 2)})"),
    ("return {1: 2}.keys()", "assert f() == [1]"),
    ("return {1: 2}.values()", "assert list(f()) == [2] and f() != [2]"),
    (
        "from fractions import Fraction; return Fraction(3, 6)",
        "assert f() == 0.5 and abs(f() - 0.5) < 1e-9 and f().denominator == 2",
    ),
    (
        "from decimal import Decimal; return Decimal('1.50')",
        "from decimal import Decimal; assert f() == 1.5 and str(f()) == '1.50' and f() + 1 == Decimal('2.5')",
    ),
    (
        "from datetime import date, datetime, time, timedelta; return date(2024, 2, 29), datetime(2024, 1, 2, 3, 4, 5, 6), time(1), timedelta(1, 2, 3)",
        "from datetime import *; assert f() == (date(2024, 2, 29), datetime(2024, 1, 2, 3, 4, 5, 6), time(1), timedelta(1, 2, 3))",
    ),
    # subclasses of builtin types
    ("from enum import IntEnum; return IntEnum('E', 'a b').b", "assert f() == 2"),
    ("from enum import StrEnum; return StrEnum('E', 'a b').b", "assert f() == 'b'"),
    ("from enum import Enum; return Enum('E', 'a b').b", "assert f() == 2"),
    ("return type('L', (list,), {})([1, 2])", "assert f() == [1, 2]"),
    ("return type('D', (dict,), {})(a=type('T', (tuple,), {})((1,)))", "assert f() == {'a': (1,)}"),
    ("return type('F', (float,), {})(1.5)", "assert f() == 1.5 and abs(f() - 1) < 1"),
    ("return type('I', (int,), {})(5), type('S', (str,), {})('x')", "assert f() == (5, 'x')"),
    # what is no plain value stays in the program's process
    ("return map(int, '123')", "assert f() == [1, 2, 3]"),
    ("return map(int, '123')", "assert list(f()) == [1, 2, 3]"),
    ("return (x * x for x in range(1000))", "assert sum(f()) == sum(x * x for x in range(1000))"),
    ("return zip('ab', [1, 2])", "assert dict(f()) == {'a': 1, 'b': 2}"),
    (
        "return reversed([1, 2]), iter([1]), enumerate('a')",
        "assert [list(x) for x in f()] == [[2, 1], [1], [(0, 'a')]]",
    ),
    (
        "import itertools; return itertools.count()",
        "r = f(); assert [next(r) for _ in range(5)] == [0, 1, 2, 3, 4]",
    ),
    (
        "yield 1\n    yield 2\n    raise KeyError(7)",
        "r = f(); assert next(r) == 1 and next(r) == 2\ntry: next(r)\nexcept KeyError as e: assert e.args == (7,)",
    ),
    ("yield from ()", "r = f()\ntry: next(r)\nexcept StopIteration: pass\nelse: assert False"),
    ("return lambda x: x + 1", "assert f()(2) == 3"),
    ("return f0", "assert callable(f()) and f()() == 3"),
    ("import functools; return functools.partial(max, 3)", "assert f()(2, 5) == 5"),
    ("return object()", "assert f() and f() != 3 and f() is not None"),
    (
        "return type('P', (), {'x': 3, 'm': lambda s, k, d=2: k * d})()",
        "p = f(); assert p.x == 3 and p.m(4) == 8 and p.m(4, d=3) == 12; p.x = 5; assert p.x == 5; del p.x; assert p.x == 3",
    ),
    (
        "return type('P', (), {'__len__': lambda s: 0, '__str__': lambda s: 'hi', '__getitem__': lambda s, i: (i, 1)})()",
        "p = f(); assert not p and len(p) == 0 and str(p) == 'hi' and p['z'] == ('z', 1)",
    ),
    (
        "return type('P', (), {'__iter__': lambda s: iter('abc')})()",
        "assert list(f()) == list('abc') and 'b' in f() and 'z' not in f()",
    ),
    ("return type('P', (), {'y': type('Q', (), {'z': [1]})()})()", "assert f().y.z == [1]"),
    ("return [o := object(), o]", "r = f(); assert r[0] is r[1] and r[0] == r[1]"),
    ("return 3", "assert f()[0] == 3"),
    ("return object()", "assert f() + 1 == 3"),
    ("return object()", "assert f() < 3"),
    ("return object()", "assert f().x == 3"),
    # exceptions
    (
        "raise ValueError('a', 1)",
        "try: f()\nexcept ValueError as e: assert e.args == ('a', 1)\nelse: assert False",
    ),
    ("raise KeyError(3)", "try: f()\nexcept LookupError as e: assert str(e) == '3'"),
    (
        "raise type('Mine', (TypeError,), {})('text')",
        "try: f()\nexcept TypeError as e: assert str(e) == 'text' and type(e).__name__ == 'Mine'",
    ),
    ("return [][0]", "try: f()\nexcept IndexError: pass"),
    ("return [][0]", "f()"),
    ("return b'\\xff'.decode()", "try: f()\nexcept UnicodeDecodeError as e: assert e.start == 0"),
    ("open('/nonexistent')", "try: f()\nexcept FileNotFoundError as e: assert e.errno == 2"),
    ("raise SystemExit(2)", "try: f()\nexcept SystemExit as e: assert e.code == 2"),
    ("raise StopIteration", "try: f()\nexcept StopIteration: pass"),
    ("assert False, 'mine'", "try: f()\nexcept AssertionError as e: assert str(e) == 'mine'"),
    ("return 1 / 0", "try: f()\nexcept (ValueError, ZeroDivisionError): pass"),
    # arguments: all kinds of passing, changes, and the same object given back
    ("return a", "assert f(1, 'x', None, [2]) == (1, 'x', None, [2])"),
    ("return sorted(a[0], key=a[1])", "assert f([3, 1, 2], lambda x: -x) == [3, 2, 1]"),
    ("return [a[0](i, k=2) for i in range(3)]", "def g(i, k=1): return i * k\nassert f(g) == [0, 2, 4]"),
    ("return list(a[0])", "assert f(x * 2 for x in range(300)) == [x * 2 for x in range(300)]"),
    ("return next(a[0]), next(a[0])", "x = iter([1, 2, 3]); assert f(x) == (1, 2) and next(x) == 3"),
    ("a[0].sort(); return None", "x = [3, 1, 2]; f(x); assert x == [1, 2, 3]"),
    ("a[0].sort(); return a[0]", "x = [3, 1, 2]; assert f(x) is x and x == [1, 2, 3]"),
    (
        "a[0]['k'].append(1); a[0]['new'] = (1,); return len(a[0])",
        "x = {'k': []}; y = x['k']; assert f(x) == 2 and x == {'k': [1], 'new': (1,)} and x['k'] is y and y == [1]",
    ),
    ("a[0][0].add(5); return a[0]", "x = ({1, 2}, 3); assert f(x) == ({1, 2, 5}, 3) and x[0] == {1, 2, 5}"),
    (
        "a[0].clear(); a[1].reverse(); raise ValueError",
        "x, y = [1], [1, 2]\ntry: f(x, y)\nexcept ValueError: assert x == [] and y == [2, 1]",
    ),
    ("a[0].append(a[0])", "x = [1]; f(x); assert x[1] is x"),
    ("a[0][0] = True; return None", "x = [1]; f(x); assert x[0] is True"),
    (
        "a[0].append(1); a[1].update('ab'); a[2].extend(b'z')",
        "from collections import *; x, y, z = deque([0]), Counter('a'), bytearray(b'y'); f(x, y, z); assert (list(x), y, z) == ([0, 1], Counter('aab'), b'yz')",
    ),
    ("return a[0] is a[1]", "x = []; assert f(x, x) is True and f([], []) is False"),
    (
        "return type(a[0]).__name__, a[0] == {1: 2}",
        "from collections import *; assert f(OrderedDict({1: 2})) == ('OrderedDict', True) and f(defaultdict(int, {1: 2})) == ('defaultdict', True)",
    ),
    (
        "return a[0].val + a[0].next.val",
        "class Node:\n    def __init__(s, v, n=None): s.val, s.next = v, n\nassert f(Node(1, Node(2))) == 3",
    ),
    (
        "a[0].val = 9; return a[0].twice()",
        "class Node:\n    val = 1\n    def twice(s): return s.val * 2\nn = Node(); assert f(n) == 18 and n.val == 9",
    ),
]
"""Bodies of functions, and what a test says about them."""

LIBRARIES: list[tuple[str, str]] = [
    ("import numpy; return numpy.float64(1.5)", "assert f() == 1.5 and abs(f() - 1.5) < 1e-6"),
    (
        "import numpy; return numpy.int64(3), numpy.float32(0.1), numpy.str_('a')",
        "assert f() == (3, numpy.float32(0.1), 'a')",
    ),
    ("import numpy; return numpy.bool_(True)", "assert f() == True and f() is not True"),
    ("import numpy; return numpy.array([1, 2])", "assert f() == [1, 2]"),
    ("import numpy; return numpy.array([1, 2])", "assert list(f()) == [1, 2] and f().tolist() == [1, 2]"),
    ("import numpy; return numpy.array([2])", "assert f() == [2]"),
    ("import numpy; return numpy.eye(2)", "assert (f() == numpy.eye(2)).all() and f().shape == (2, 2)"),
    ("import numpy; return numpy.array([1, 'a', None], dtype=object)", "assert list(f()) == [1, 'a', None]"),
    ("a[0][:] = 7", "x = numpy.zeros(2); f(x); assert list(x) == [7, 7]"),
    ("import numpy; return {numpy.int64(1): numpy.nan}", "assert list(f()) == [1] and f()[1] != f()[1]"),
    (
        "import sympy; return sympy.Integer(3), sympy.Rational(1, 2), sympy.true",
        "assert f()[0] == 3 and f()[1] * 2 == 1 and f()[2]",
    ),
    ("import sympy; return sympy.sqrt(2) + sympy.pi", "assert abs(f() - 4.555806) < 1e-5"),
    ("import mpmath; return mpmath.mpf(2) ** 0.5", "assert abs(f() - 1.41421356) < 1e-6"),
    ("import mpmath; return mpmath.mpc(1, 2)", "assert f() == 1 + 2j"),
]
"""The same with the packages that programs may import."""

MARKS = {"P": "passed", "W": "an assertion failed", "E": "another exception"}

_RUNNER = """
marks = ''
for number, text in enumerate({texts!r}):
    scope = dict(globals(), f=globals()['f%d' % number])
    try:
        exec(text, scope)
        marks += 'P'
    except AssertionError:
        marks += 'W'
    except BaseException as error:
        marks += 'E'
raise AssertionError(marks)
"""


def program_of(cases: list[tuple[str, str]]) -> str:
    """A program with the function of each case: ``f0``, ``f1`` ..."""
    return "".join(f"def f{number}(*a):\n    {body}\n" for number, (body, _) in enumerate(cases))


def runner_of(cases: list[tuple[str, str]]) -> str:
    """A test that says by a letter for each case how its assertion ends."""
    head = "import numpy\n" if "numpy" in cases[0][0] else ""
    return head + _RUNNER.format(texts=[text for _, text in cases])
