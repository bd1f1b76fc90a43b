"""The library's own functions of numbers, against mpmath."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from treeshare.native import functions

LIBRARY = functions()

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no compiled library")

DIGITS = 60


def computed(name, *arrays):
    out = np.empty_like(arrays[-1])
    getattr(LIBRARY, f"treeshare_{name}")(*(array.ctypes.data for array in (*arrays, out)), out.size)
    return out


def exact(function, values, kind):
    """``function`` of each value, rounded once."""
    with mpmath.workdps(DIGITS):
        return np.array([kind(function(mpmath.mpf(float(value)))) for value in values], dtype=kind)


def angles():
    """Small and large ones, whole ones as positions give, those nearest to multiples of a quarter turn."""
    draws = np.random.default_rng(0)
    quarters = (draws.integers(1, 1 << 23, 400) * np.pi / 2).astype(np.float32)
    neighbours = [np.nextafter(quarters, np.float32(side)) for side in (-np.inf, np.inf)]
    parts = [
        draws.uniform(-4, 4, 500),
        draws.integers(0, 1 << 24, 500),
        [0.0, 1e-30, -1e-8],
        quarters,
        *neighbours,
    ]
    found = np.concatenate(parts).astype(np.float32)
    return found[np.abs(found) < 2**24]


@pytest.mark.parametrize("name", ["cos", "sin"])
def test_sine_and_cosine_are_rounded_correctly(name):
    values = angles()
    assert np.count_nonzero(computed(name, values) != exact(getattr(mpmath, name), values, np.float32)) == 0


@pytest.mark.parametrize("base", [1e4, 5e5, 1e6, 8e6, 1.5])
def test_powers_are_rounded_correctly(base):
    exponents = np.concatenate([np.arange(0, 1, 1 / 64), np.arange(0, 1, 1 / 80)]).astype(np.float32)
    expected = exact(lambda exponent: mpmath.mpf(base) ** exponent, exponents, np.float32)
    assert np.array_equal(computed("power", np.array([base]), exponents), expected)


def test_logarithms():
    """Within two units of the last place, over all sizes and close to 1."""
    draws = np.random.default_rng(0)
    near = 1 + draws.uniform(-0.5, 1, 400) * 2.0 ** -draws.integers(0, 52, 400)
    values = np.concatenate(
        [[1.0, 2.0, 0.5], near, 10 ** draws.uniform(-300, 300, 400), draws.uniform(1, 2e5, 400)]
    )
    found = computed("log", values)
    with mpmath.workdps(DIGITS):
        errors = [
            abs(mpmath.mpf(float(a)) - mpmath.log(mpmath.mpf(float(x))))
            for a, x in zip(found, values, strict=True)
        ]
    assert np.count_nonzero(found == 0) == np.count_nonzero(values == 1)
    assert all(float(error) <= 2 * np.spacing(abs(a)) for error, a in zip(errors, found, strict=True))


def test_the_oracle_sees_an_error_of_one_place():
    """The positive control."""
    values = angles()
    wrong = np.nextafter(computed("cos", values), np.float32(2))
    assert np.count_nonzero(wrong != exact(mpmath.cos, values, np.float32)) == len(values)
