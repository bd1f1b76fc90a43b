"""Printed text: AlphaCode's comparison beside one written down from its source, and long numbers."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from treeshare.evals.matching import AlphaCodeMatcher, FloatMatcher, TokenMatcher

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def alphacode(got, expected):
    """``OutputsMatch`` of AlphaCode's tester, for numbers within the doubles and integers below 2**53."""

    def parts(text):
        lower = "".join(c.lower() if c.isascii() else c for c in text)
        return [part for part in re.split("[ \n\t\r\v]", lower) if part]

    ours, theirs = parts(got), parts(expected)
    if ours == theirs:
        return True
    if len(ours) != len(theirs):
        return False
    return all(
        abs(float(our) - float(their)) < 1e-5
        if NUMBER.fullmatch(our) and NUMBER.fullmatch(their)
        else our == their
        for our, their in zip(ours, theirs, strict=True)
    )


WORDS = "A a É é ab -0 0 0.0 007 7 +7 7. .5 0.5 5e-1 1e-6 0.500009 0.50002 1_0 ٣ . - 1e 0x1 İ"
tokens = (
    st.sampled_from(WORDS.split()) | st.integers(-(2**50), 2**50).map(str) | st.floats(-1e9, 1e9).map(str)
)
texts = st.lists(
    st.tuples(tokens, st.sampled_from([" ", "\n", "\r\n", "\t", "\v", "\f", " \n\n", "\x85", "\u2003"]))
)


@examples(60)
@given(texts, texts)
def test_as_alphacode_compares(one, other):
    got, expected = ("".join(token + space for token, space in pairs) for pairs in (one, other))
    assert (AlphaCodeMatcher().difference(got, expected, "") is None) == alphacode(got, expected)


@examples(60)
@given(texts, st.randoms())
def test_other_spaces_other_case_and_a_little_off(pairs, chance):
    """Derived from one text, so that most of them match."""
    expected = "".join(token + space for token, space in pairs)
    got = "".join(
        (
            f"{float(token) + chance.choice([0, 9e-6, 2e-5]):.7f}"
            if NUMBER.fullmatch(token)
            else token.swapcase()
        )
        + chance.choice([" ", "\n", "\r"])
        for token, _ in pairs
    )
    assert (AlphaCodeMatcher().difference(got, expected, "") is None) == alphacode(got, expected)


@pytest.mark.parametrize(
    ("got", "expected", "right"),
    [
        ("9007199254740993", "9007199254740992", False),  # on purpose
        ("inf 1.0", "inf 1", True),  # on purpose
        ("nan", "NaN", True),
        ("nan", "1", False),
        ("inf", "1e999", False),
        ("1e999", "1e998", False),
        ("1" * 400 + ".0", "2" * 400 + ".0", False),
        ("1" * 400 + " 1.0", "1" * 400 + " 1", True),
        ("+" + "1" * 5000, "0" + "1" * 5000, True),
        ("1" * 5000, "1" * 4999 + "2", False),
        ("-" + "1" * 5000, "1" * 5000, False),
    ],
)
def test_beyond_the_doubles(got, expected, right):
    assert (AlphaCodeMatcher().difference(got, expected, "") is None) == right


def test_a_statements_tolerance_comes_on_top():
    strict, wide = AlphaCodeMatcher(), AlphaCodeMatcher(tolerance=1e-3)
    for matcher, right in ((strict, False), (wide, True)):
        assert (matcher.difference("1000.5 YES", "1000.0\nyes", "") is None) == right
        assert matcher.difference("1001", "1000", "") is not None  # integers
    assert wide.difference("0.5 1", "0.5005\n1", "") is None
    assert wide.difference("0.5", "0.6", "") == "token 1: '0.5', expected '0.6'"
    assert wide.difference("0.5", "0.5 1", "") == "token 2: nothing, expected '1'"


BODIES = {"8" * 5000: 8 * (10**5000 - 1) // 9, "9" * 5000: 10**5000 - 1, "1" + "0" * 320: 10**320}
BODIES |= {"8" * 4999 + "9": BODIES["8" * 5000] + 1, "8" * 5001: 8 * (10**5001 - 1) // 9}
LONG_NUMBERS = {
    f"{sign}{body}{f'e{power}' * bool(power)}": (-1 if sign else 1) * number * 10 ** (6000 + power)
    for body, number in BODIES.items()
    for power in (0, 400, -6000, -4990)
    for sign in (["", "-"] if power in (0, -4990) else [""])
}
"""Tokens, and what they stand for in units of 1e-6000."""


def close(got, expected, absolute, relative):
    """Within ``10**absolute``, or within ``10**relative`` of what is expected."""
    far = abs(LONG_NUMBERS[got] - LONG_NUMBERS[expected])
    if abs(LONG_NUMBERS[expected]) < far:
        return far <= 10 ** (6000 + absolute)
    return far <= 10 ** (6000 + absolute) or far * 10**-relative <= abs(LONG_NUMBERS[expected])


def doubles_close(got, expected):
    ours, theirs = float(got), float(expected)
    return abs(ours - theirs) < 1e-5  # not a number, and so False, for two infinities


@pytest.mark.parametrize(
    ("matcher", "alike"),
    [
        (TokenMatcher(), lambda got, expected: False),
        (FloatMatcher(), lambda got, expected: close(got, expected, -6, -6)),
        (FloatMatcher(relative=0, absolute=1e-6), lambda got, expected: close(got, expected, -6, -9_999)),
        (AlphaCodeMatcher(), doubles_close),
    ],
    ids=["tokens", "floats", "absolute", "alphacode"],
)
def test_long_numbers_are_compared_exactly(matcher, alike):
    """All pairs: a token equals itself; two integers nothing else; other numbers as exact arithmetic says."""
    found = set()
    for got in LONG_NUMBERS:
        for expected in LONG_NUMBERS:
            right = got == expected or (("e" in got or "e" in expected) and alike(got, expected))
            assert (matcher.difference(got, expected, "") is None) == right, (got[-9:], expected[-9:])
            found.add(right)
    assert found == {True, False}


def test_exponents_beyond_everything():
    tokens = ["1e999999999999", "2e999999999999", "-1e999999999999", "inf", "-inf", "nan", "1" * 5000, "1.5"]
    for matcher in (FloatMatcher(), AlphaCodeMatcher(), AlphaCodeMatcher(tolerance=1e-3)):
        for got in tokens:
            for expected in tokens:
                assert (matcher.difference(got, expected, "") is None) == (got == expected), (got, expected)


@pytest.mark.parametrize(
    "token", ["1_000", "٣", "0x10", "1e", "--1", "infinit", ".", "1e99999999999999999999999"]
)
def test_what_is_no_number_is_text(token):
    assert FloatMatcher().difference(token, token, "") is None
    for expected in ("1000", "3", "16", "1", "inf", "0"):
        assert FloatMatcher(relative=0.5, absolute=0.9).difference(token, expected, "") is not None
        assert AlphaCodeMatcher(tolerance=0.9).difference(token, expected, "") is not None


@pytest.mark.parametrize(
    "text",
    [
        lambda n: "7" * n,
        lambda n: "0." + "7" * n,
        lambda n: "7" * n + "e",
        lambda n: "7" * (n // 2) + "." + "7" * (n // 2) + "x",
        lambda n: "-" * n,
        lambda n: "1e" + "9" * n,
        lambda n: " " * n,
        lambda n: "\r\n" * (n // 2),
        lambda n: "1 " * (n // 2),
        lambda n: "a\n" * (n // 2),
    ],
)
@pytest.mark.parametrize("matcher", [FloatMatcher(), AlphaCodeMatcher(tolerance=1e-6)])
def test_time_grows_with_the_text(matcher, text):
    def seconds(size):
        got, found = text(size), []
        for _ in range(3):
            began = time.process_time()
            matcher.difference(got, got[:-1] + "8", "")
            found.append(time.process_time() - began)
        return min(found)

    assert seconds(48_000) < 128 * max(seconds(3_000), 4e-3)  # 16 times; quadratic would be 256
