"""What is a right answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeshare.errors import ConfigError
from treeshare.evals.matching import (
    AnyOfMatcher,
    FloatMatcher,
    FunctionMatcher,
    TokenMatcher,
    UnknownMatcher,
    ValueMatcher,
)


@pytest.mark.parametrize(
    ("got", "expected", "difference"),
    [
        ("1 2\n3\n", "1 2\n3", None),
        ("  1  2 \r\n\r\n3\n\n", "1 2\n3", None),
        ("", " \n", None),
        ("1 2 3", "1 2\n3", "line 1, token 3: '3', expected nothing"),
        ("1\n2", "1 2", "line 1, token 2: nothing, expected '2'"),
        ("", "1", "line 1: nothing, expected '1'"),
        ("1\n2", "1", "line 2: '2', expected nothing"),
        ("1.0", "1", "line 1, token 1: '1.0', expected '1'"),
        ("yes", "YES", "line 1, token 1: 'yes', expected 'YES'"),
        ("01", "1", "line 1, token 1: '01', expected '1'"),
        ("x" * 99, "y", f"line 1, token 1: 'xxx{'x' * 36}..., expected 'y'"),
    ],
)
def test_tokens(got, expected, difference):
    assert TokenMatcher().difference(got, expected, "") == difference


@pytest.mark.parametrize(
    ("got", "expected", "right"),
    [
        ("0.3333333", "0.333333333", True),
        ("0.33", "0.333333333", False),
        ("1000000000.5", "1000000001.0", True),
        ("1000000001", "1000000000", False),  # integers are not measured
        ("3", "3.0000000001", True),
        ("3.0", "3", True),
        ("1e3", "1000.0", True),
        ("nan", "nan", True),
        ("nan", "1.0", False),
        ("1.0", "nan", False),
        ("inf", "inf", True),
        ("inf", "1e308", False),
        ("1e308", "inf", False),
        ("-inf", "inf", False),
        ("9" * 400, "1.5", False),
        ("YES 0.1", "YES 0.1000000001", True),
        ("NO 0.1", "YES 0.1", False),
        ("0.1 0.2", "0.1\n0.2", False),
        ([1.0, [0.1 + 0.2]], [1, [0.3]], True),
        ([10**9 + 1], [10**9], False),
        ({"a": 0.30000001}, {"a": 0.3}, True),
        ([10**400], [0.5], False),
        ("a", "a", True),
    ],
)
def test_floats(got, expected, right):
    assert (FloatMatcher().difference(got, expected, "") is None) == right


@pytest.mark.parametrize(
    ("got", "expected", "right"),
    [
        ([1, 2], (1, 2), True),
        (1, 1.0, True),
        (True, 1, False),
        (0, False, False),
        ("1", 1, False),
        (None, [], False),
        (None, None, True),
        ([1, 2], [2, 1], False),
        ([1], [1, 2], False),
        ({"a": [1]}, {"a": [1]}, True),
        ({"a": [1]}, {"a": [2]}, False),
        ({"a": 1}, {"b": 1}, False),
    ],
)
def test_values(got, expected, right):
    assert (ValueMatcher().difference(got, expected, []) is None) == right


def test_values_nested_beyond_recursion():
    left, other = [], []
    for _ in range(100_000):
        left, other = [left], [other]
    assert ValueMatcher().difference(left, other, []) is None


def test_several_right_answers():
    matcher = AnyOfMatcher(TokenMatcher())
    assert matcher.difference("2 1", ["1 2", "2 1"], "") is None
    assert matcher.difference("3", ["1 2", "2 1"], "").startswith("none of 2 right answers")
    even = FunctionMatcher(
        name="even/1", function=lambda got, expected, given: None if int(got) % 2 == 0 else "odd"
    )
    assert (even.difference("4", "2", ""), even.difference("3", "2", "")) == (None, "odd")
    unknown = UnknownMatcher(TokenMatcher())
    assert not unknown.decides
    assert unknown.difference("1", "1", "") is None
    assert unknown.difference("2", "1", "")


def test_keys_tell_rules_apart():
    matchers = [
        TokenMatcher(),
        ValueMatcher(),
        FloatMatcher(),
        FloatMatcher(relative=1e-3),
        AnyOfMatcher(TokenMatcher()),
        UnknownMatcher(TokenMatcher()),
        FunctionMatcher(name="a/1", function=lambda *_: None),
        FunctionMatcher(name="a/2", function=lambda *_: None),
    ]
    assert len({matcher.key for matcher in matchers}) == len(matchers)
    with pytest.raises(ConfigError, match="relative: got 2, expected from 0 to below 1"):
        FloatMatcher(relative=2)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(json_values)
def test_a_value_equals_itself(value):
    assert ValueMatcher().difference(value, value, []) is None
    assert FloatMatcher().difference(value, value, []) is None


@given(st.text(), st.text())
def test_tokens_mean_equal_splits(got, expected):
    def tokens(text):
        return [line.split() for line in text.split("\n") if line.split()]

    assert (TokenMatcher().difference(got, expected, "") is None) == (tokens(got) == tokens(expected))
