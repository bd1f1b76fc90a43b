"""Values across the border of the sandbox: the same value comes back, and whatever else comes is bounded."""

from __future__ import annotations

import collections
import enum
import math
import subprocess
import sys
import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from treeshare.evals import values
from treeshare.evals.values import MAX_DEPTH, Array, NoValueError, decode, encode

LONG = 7**1500  # 1,268 digits: what hypothesis can still print

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.fractions()
    | st.decimals(allow_nan=False)
    | st.sampled_from([LONG, -LONG, range(3), range(9, -LONG, -2)])
)
keys = st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["$int", "$", LONG, (1, "a")])
typed_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.sets(scalars)
        | st.frozensets(scalars)
    ),
    max_leaves=12,
)


def typed(value):
    """A value with all its types, so that ``True`` is not ``1``."""
    if isinstance(value, (list, tuple)):
        return type(value), [typed(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(repr(typed(item)) for item in value)
    if isinstance(value, dict):
        return dict, [(typed(key), typed(inner)) for key, inner in value.items()]
    return type(value), repr_of(value)


def repr_of(value):
    return (
        hex(value) if type(value) is int else str(value) if isinstance(value, Decimal) else repr_long(value)
    )


def repr_long(value):
    return (value.start, hex(value.stop), value.step) if isinstance(value, range) else repr(value)


@examples(60)
@given(typed_values)
def test_what_is_written_is_read(value):
    text = encode(value)
    assert text.isascii()
    assert typed(decode(text)) == typed(value)


def test_plain_values_are_plain_json():
    assert encode([1, {"a": None, "$b": 1.5}, "\udc00"]) == '[1, {"a": null, "$b": 1.5}, "\\udc00"]'
    assert encode({"$int": 1}) == '{"$dict": [["$int", 1]]}'
    assert math.isnan(decode(encode([math.nan]))[0])
    assert str(decode(encode(-0.0))) == "-0.0"


class Liar:
    def __eq__(self, other):
        return True

    __hash__ = None


def own(base, content, **members):
    """An object of a class of its own that claims to be anything."""
    claims = {"__eq__": lambda *_: True, "__hash__": lambda _: 0, "__repr__": lambda _: "7", **members}
    claims |= {"__int__": lambda _: 7, "__iter__": lambda _: iter([7]), "__len__": lambda _: 1}
    return type("Own", (base,), claims)(content)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (own(int, 9), 9),
        (own(float, 2.5), 2.5),
        (own(str, "ab"), "ab"),
        (own(bytes, b"ab"), b"ab"),
        (own(list, [1, 2]), [1, 2]),
        (own(tuple, (1, 2)), (1, 2)),
        (own(dict, {1: 2}), {1: 2}),
        (own(set, {1}), {1}),
        (own(frozenset, {1}), frozenset({1})),
        (own(complex, 2j), 2j),
        (bytearray(b"x"), b"x"),
        (enum.IntEnum("E", "ONE TWO").TWO, 2),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict([(2, 1)]), {2: 1}),
        (collections.namedtuple("P", "x y")(1, 2), (1, 2)),
        (collections.UserList([1, (2,)]), [1, (2,)]),
        (np.int64(-5), -5),
        (np.uint8(200), 200),
        (np.float64(0.1), 0.1),
        (np.float32(0.1), 13421773 / 134217728),
        (np.float16(np.inf), math.inf),
        (np.longdouble(1) + np.finfo(np.longdouble).eps, Fraction(2**63 + 1, 2**63)),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.complex64(1 + 2j), 1 + 2j),
        ([np.int8(1), [np.True_]], [1, [True]]),
        ({np.int64(1): np.int64(2)}, {1: 2}),
    ],
)
def test_a_value_is_what_its_base_holds(value, plain):
    assert typed(decode(encode(value))) == typed(plain)


@pytest.mark.parametrize("items", [[], [1], [[1, 2], [3, 4]], 5, ["a"]])
def test_arrays(items):
    found = decode(encode(np.array(items)))
    assert type(found) is Array
    assert found.items == items


@pytest.mark.skipif(np.finfo(np.longdouble).nmant != 63, reason="no 80-bit floats here")
def test_a_library_that_a_program_may_import():
    sympy = pytest.importorskip("sympy")
    assert [decode(encode(sympy.Integer(4))), decode(encode(sympy.Rational(1, 3)))] == [4, Fraction(1, 3)]
    assert decode(encode(sympy.mpmath.mpf("0.5") if hasattr(sympy, "mpmath") else 0.5)) == 0.5


def nested(depth, layer):
    value = 0
    for _ in range(depth):
        value = layer(value)
    return value


@pytest.mark.parametrize(
    ("value", "noun"),
    [
        (Liar(), "a Liar"),
        (len, "a builtin_function_or_method"),
        ([Liar], "a type"),
        ((x for x in ()), "a generator"),
        ({"a": object()}, "an object"),
        (np.datetime64(5, "D"), "a datetime64"),
        (nested(MAX_DEPTH + 1, lambda v: [v]), f"a value nested deeper than {MAX_DEPTH} levels"),
        (nested(99_999, lambda v: {"a": v}), f"a value nested deeper than {MAX_DEPTH} levels"),
        (nested(99_999, lambda v: (v,)), f"a value nested deeper than {MAX_DEPTH} levels"),
        (nested(99_999, lambda v: {1: [v]}), f"a value nested deeper than {MAX_DEPTH} levels"),
        (Fraction(LONG**20, 2), "a fraction of more than 65536 bits"),
    ],
)
def test_what_is_no_value_is_named(value, noun):
    with pytest.raises(NoValueError) as caught:
        encode(value)
    assert str(caught.value) == noun


@pytest.mark.parametrize("layer", [lambda v: [v], lambda v: (v,), lambda v: {"a": v}, lambda v: {1: v}])
def test_what_may_be_written_may_be_read(layer):
    """At each depth: nothing is written that is too deep to be read."""
    written = 0
    for depth in [*range(60, MAX_DEPTH, 7), *range(MAX_DEPTH - 3, MAX_DEPTH + 3)]:
        value = nested(depth, layer)
        try:
            text = encode(value)
        except NoValueError:
            continue
        written += 1
        assert typed(decode(text)) == typed(value)
    assert written > 3


COLLIDING = [f'"0x{k * (2**61 - 1):x}"' for k in range(1, 25_000)]
ATTACKS = {
    "no JSON": "os.system('id')",
    "an expression": "__import__('os').getpid()",
    "deep": "[" * 2_000_000,
    "deep and closed": "[" * 30_000 + "]" * 30_000,
    "deep tags": '{"$tuple":[' * 30_000 + "]}" * 30_000,
    "deep after text": '["\\\\","' + "]" * 999 + '",' + "[" * 999,
    "digits": "7" * 3_000_000,
    "digits inside": "[[" + "7" * 3_000_000 + "]]",
    "a sign and digits": "-" + "7" * 3_000_000,
    "a long fraction": '{"$fraction":[{"$int":"0x'
    + "f" * 900_000
    + '"},{"$int":"0x'
    + "e" * 900_000
    + '"}]}',
    "a long decimal": '{"$decimal":"' + "7" * 3_000_000 + '"}',
    "a fraction by zero": '{"$fraction":[1,0]}',
    "no decimal": '{"$decimal":"x"}',
    "a range of floats": '{"$range":[1.5,2,3]}',
    "a range without steps": '{"$range":[1,2,0]}',
    "a set of lists": '{"$set":[[1]]}',
    "text for a tuple": '{"$tuple":"abc"}',
    "an integer of letters": '{"$int":"xyz"}',
    "an integer of a list": '{"$int":[]}',
    "a complex number of three": '{"$complex":[1,2,3]}',
    "a pair alone": '{"$dict":[1]}',
    "a set that collides": '{"$set":[' + ",".join(f'{{"$int":{k}}}' for k in COLLIDING) + "]}",
    "keys that collide": '{"$dict":[' + ",".join(f'[{{"$int":{k}}},1]' for k in COLLIDING) + "]}",
    "tuples that collide": '{"$set":[' + ",".join(f'{{"$tuple":[{{"$int":{k}}}]}}' for k in COLLIDING) + "]}",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_at_once(attack):
    began = time.process_time()
    with pytest.raises(ValueError, match=r"cannot be read|nested deeper"):
        decode(ATTACKS[attack])
    assert time.process_time() - began < 3  # quadratic time would be a minute


def test_long_integers_take_linear_time():
    def seconds(digits):
        text = encode(16**digits)
        began = time.process_time()
        for _ in range(5):
            assert decode(text) == 16**digits
        return time.process_time() - began

    seconds(10)
    assert seconds(1_600_000) < 60 * max(seconds(100_000), 1e-3)  # 16 times; quadratic would be 256


def test_the_file_runs_alone_and_imports_nothing_at_first():
    """It is in the sandbox, in front of every call."""
    program = (
        "import sys\nbefore = set(sys.modules)\nspace = {'__name__': 'values'}\n"
        f"exec(open({values.__file__!r}).read(), space)\n"
        "assert set(sys.modules) - before <= {'__future__'}, set(sys.modules) - before\n"
        "print(space['encode']((1, 2, space['decode']('[2]'))))"
    )
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ('{"$tuple": [1, 2, [2]]}\n', "")
