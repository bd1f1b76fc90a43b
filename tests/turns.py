"""Which cases of a product run every time: each value of each axis, by turns; the whole product is slow."""

from __future__ import annotations

import itertools

import pytest


def slow_but(kept, values):
    """The values as parameters: those in ``kept`` always run, the others are slow."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.slow) for value in values]


def by_turns(*axes, every=2):
    """The product of the axes as parameters: those whose places add up to a multiple of ``every`` run."""
    cases = []
    for case in itertools.product(*map(enumerate, axes)):
        is_slow = sum(place for place, _ in case) % every != 0
        cases.append(pytest.param(*(value for _, value in case), marks=[pytest.mark.slow] * is_slow))
    return cases
