"""Attention in codes of 8 bits: the oracle's results, the same bytes at every level and in any company."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from tests.attention.budget import Case, Forest
from tests.attention.coded_oracle import coded_oracle
from tests.kernel_levels import LEVELS, PORTABLE_CODES, num_threads, portable_by, using_kernels
from treeshare.attention import NativeAttention
from treeshare.native import PORTABLE, kernel_levels

pytestmark = pytest.mark.skipif(not LEVELS, reason="no compiled library, or none for this CPU")

CASE = Case(
    (-1, 0, 0, 2),
    (300, 30, 280, 40),
    ((1, 4), (0, 1), (3, 40), *((2, length) for length in (0, 9, 33))),
    prefilled=(3,),
    chunk=20,
    score_scale=1.5,
)
"""Blocks of one node and of two, unfinished ones, and a causal one."""

FEATURES = replace(CASE, window=100, soft_cap=2.0, has_sinks=True, head_dim=48, value_dim=36)
CASES = {"plain": CASE, "features": FEATURES, "wide": replace(CASE, head_dim=128, group_size=1)}


def attend(case):
    forest = Forest(case)
    return forest, forest.attend(NativeAttention(level=PORTABLE, in_codes=True))


def error_of(forest, state):
    """How far a result is from the oracle's in codes, and how far that is from exact attention: on average.

    A number that lies between two codes may become either, so the first is not zero.
    """
    num_rows = forest.layout.num_rows
    (out, lse), (exact, exact_lse) = coded_oracle(forest), forest.oracle()
    found, own = state.out[:num_rows].double(), (out - exact[:num_rows]).abs().mean()
    lse_error = (state.lse[:num_rows].double() - lse).abs().mean() / (lse - exact_lse[:num_rows]).abs().mean()
    return max(((found - out).abs().mean() / own).item(), lse_error.item())


BUDGET = 0.005
"""Of the codes' own error: what their rounding may differ by."""


@pytest.mark.parametrize("name", CASES)
def test_results_are_the_oracles(name):
    assert error_of(*attend(CASES[name])) < BUDGET


def same(first, second):
    return torch.equal(first.out, second.out) and torch.equal(first.lse, second.lse)


def test_levels_and_threads_change_no_byte():
    _, expected = attend(FEATURES)
    for level, threads in itertools.product(kernel_levels()[:-1], (1, 3)):
        with using_kernels(level), num_threads(threads):
            assert same(attend(FEATURES)[1], expected), (level, threads)
    for code in PORTABLE_CODES:
        with portable_by(code):
            assert same(attend(FEATURES)[1], expected), code


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_company_changes_no_byte(dtype):
    """Each row alone; and all without shared slices."""
    forest, expected = attend(replace(CASE, dtype=dtype))
    assert same(attend(replace(CASE, dtype=dtype, sharing="none"))[1], expected)
    backend = NativeAttention(level=PORTABLE, in_codes=True)
    assert same(forest.attend(backend), expected)


def test_numbers_that_are_not_finite_stay_so():
    forest = Forest(replace(CASE, prefilled=()))
    forest.segments[1].keys(0)[3, 0, 5] = torch.inf
    state = forest.attend(NativeAttention(level=PORTABLE, in_codes=True))
    below = [r for r, d in enumerate(forest.layout.decodes) if d.segment.order == 1]
    rows = forest.layout.decode_rows[torch.tensor(below)]
    assert state.out[rows].isnan().any()
