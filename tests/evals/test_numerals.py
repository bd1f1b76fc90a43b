"""Integers of any length, below and beyond the limit that Python has."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeshare.evals.numerals import digits_of, dumps, int_of_digits, loads

lengths = st.integers(0, 4000) | st.sampled_from([599, 600, 601, 1199, 1200, 1201, 2400])


@given(st.integers(), lengths, st.integers(0, 999))
def test_as_python_does_below_its_limit(seed, length, last):
    number = seed * 10**length // 7 + last
    assert digits_of(number) == str(number)
    assert int_of_digits(str(number)) == number
    assert int_of_digits("000" + digits_of(abs(number))) == abs(number)


@pytest.mark.parametrize("length", [4301, 6001, 50_000])
def test_beyond_it(length):
    """Numbers whose digits are known without converting any."""
    ones, nines = (10**length - 1) // 9, 10**length - 1
    assert digits_of(ones) == "1" * length
    assert int_of_digits("9" * length) == nines
    assert int_of_digits(f"-{'1' * length}") == -ones
    assert digits_of(-(10**length)) == "-1" + "0" * length


def test_json_with_long_integers():
    text = f'{{"a": [{"1" * 5000}, -{"2" * 5000}, 1.5, "{"3" * 5000}"], "b": NaN}}'
    found = loads(text)
    assert found["a"][:3] == [(10**5000 - 1) // 9, -2 * (10**5000 - 1) // 9, 1.5]
    assert found["a"][3] == "3" * 5000
    assert loads(text.encode())["a"] == found["a"]
    for bad in ("{", f"[{'1' * 5000}", "[1,]"):
        with pytest.raises(ValueError, match=r"Expecting|delimiter|trailing comma"):
            loads(bad)


def test_written_for_comparing():
    ordinary = {"b": [1, "x", None, 2.5], "a": {"1": True}}
    assert dumps(ordinary, sort_keys=True) == json.dumps(ordinary, sort_keys=True)
    long = [10**5000, {"a": (10**5000 + 1, 2)}]
    assert dumps(long) == dumps(long) != dumps([10**5000, {"a": (10**5000 + 2, 2)}])
    with pytest.raises(TypeError, match="not JSON serializable"):
        dumps([object()])
