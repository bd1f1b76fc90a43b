"""Returned values against a test's answer: Python's ``==``, but for what a program says of itself."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeshare.evals.json_values import NoJsonValueError, Rounded, as_json, shown
from treeshare.evals.matching import FloatMatcher, ValueMatcher
from treeshare.evals.values import decode, encode

EQUAL = ValueMatcher(bools_are_numbers=True)

numbers = st.one_of(
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, -0.0, 2.0, 0.1, math.inf, math.nan, 2**53, 2.0**53, 2**53 + 1, 10**400, 1e308]),
    st.sampled_from(
        [Fraction(1, 2), Fraction(3), Fraction(1, 10), Decimal("0.5"), Decimal("0.1"), Decimal("NaN")]
    ),
    st.sampled_from(
        [Decimal("2.000"), Decimal("1e400"), Decimal("1e999999"), Decimal("0e-9999"), Fraction(10**400)]
    ),
    st.sampled_from([2 + 0j, 0.5j, complex("nan")]),
    st.sampled_from(
        [np.int8(2), np.float32(0.5), np.float32(0.1), np.True_, np.float64(0.1), np.uint64(2**53)]
    ),
)
answers = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["1", "a", 0.5, 0.1, 2.0, 2**53, 10**400]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "1"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(numbers, numbers.filter(lambda n: type(n) in (bool, int, float)))
def test_numbers_equal_as_python_has_it(got, expected):
    plain = (
        got.item() if isinstance(got, np.generic) else got
    )  # numpy would round the expected one to its own type
    try:
        value = as_json(decode(encode(got)))
    except NoJsonValueError:
        assert plain != expected
        return
    assert (EQUAL.difference(value, expected, []) is None) == bool(plain == expected)
    strict = ValueMatcher().difference(value, expected, []) is None
    assert strict == (bool(plain == expected) and (type(plain) is bool) == (type(expected) is bool))


@given(answers, answers)
def test_nested_values_equal_as_python_has_it(got, expected):
    assert (EQUAL.difference(as_json(decode(encode(got))), expected, []) is None) == (got == expected)


@pytest.mark.parametrize(
    ("got", "value"),
    [
        ((1, [(2, ())]), [1, [[2, []]]]),
        ({7: 3, False: 1, None: 4, 0.5: (5,), "a": 6}, {"7": 3, "false": 1, "null": 4, "0.5": [5], "a": 6}),
        (np.array([5]), [5]),
        (np.array(5), 5),
        (np.array([[True]]), [[True]]),
        ([Fraction(4, 2), Decimal("2.5")], [2, 2.5]),
        (4 + 0j, 4.0),
    ],
)
def test_the_json_value_that_a_value_equals(got, value):
    found = as_json(decode(encode(got)))
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    ("got", "noun"),
    [
        ({1}, "a set"),
        (frozenset(), "a frozenset"),
        (b"a", "a bytes"),
        (range(3), "a range"),
        ([1, {2}], "a set"),
        (1j, "a complex"),
        (np.array([1, 2]), "an array with other than one element, whose == is an array a list [1, 2]"),
        (np.array([]), "an array with other than one element, whose == is an array a list []"),
        ({(1, 2): 3}, "a dictionary with a key of type tuple"),
        (Decimal("1e999999"), "a decimal number of many digits"),
    ],
)
def test_what_equals_no_json_value_is_named(got, noun):
    with pytest.raises(NoJsonValueError) as caught:
        as_json(decode(encode(got)))
    assert str(caught.value) == noun


def test_numbers_that_no_float_equals_are_close_to_one():
    third = as_json(Fraction(1, 3))
    assert isinstance(third, Rounded)
    assert EQUAL.difference(third, 1 / 3, []) is not None
    assert FloatMatcher().difference([third], [0.333333], []) is None
    assert FloatMatcher().difference([third], [0.34], []) is not None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing"),
        ("a" * 9_999_999, f"'{'a' * 39}..."),
        ({"a": (1, b"x")}, "a dict {'a': (1, b'x')}"),
        ([[[[[[1]]]]]], "a list [[[[...]]]]"),
        ([0] * 9_999_999, "a list [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,..."),
    ],
)
def test_shown_is_short(value, text):
    assert shown(value) == text


def test_shown_of_long_integers_and_of_what_holds_itself():
    assert shown(-(10**300_000)) == "an integer of about 300000 digits"
    assert shown([10**5000]) == "a list [an integer of about 5000 digits]"
    endless = []
    endless.append(endless)
    assert shown(endless) == "a list [[[[...]]]]"
