"""Top-k, top-p and min-p on one row of weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.sampling.rows import peaked_logits
from treeshare.sampling import SamplingParams
from treeshare.sampling.filters import filter_weights, kth_largest
from treeshare.sampling.inverse_cdf import BLOCK

STEPS = st.lists(st.sampled_from([0, 1, 2, 3, 8, 64, 4096]), min_size=1, max_size=40)


@given(STEPS, st.integers(1, 2), st.floats(0.01, 1), st.integers(0, 50), st.sampled_from([0, 0.01, 0.5, 1]))
def test_filters_with_many_ties(steps, num_blocks, top_p, top_k, min_p):
    """Weights are small multiples of one power of two, so that all sums are exact: no border is unsure."""
    values = np.zeros(num_blocks * BLOCK)
    values[np.random.default_rng(len(steps)).permutation(len(values))[: len(steps)]] = steps
    values[7] = 4096
    values /= 4096
    expected = values.copy()
    if top_k > 0:
        expected[expected < np.sort(expected)[-top_k]] = 0
    if top_p < 1:
        order = sorted(range(len(values)), key=lambda token: (-expected[token], token))
        cumulative = expected[order].cumsum()
        expected[order[int((cumulative < top_p * cumulative[-1]).sum()) + 1 :]] = 0
    expected[expected < np.float32(min_p)] = 0
    weights = torch.from_numpy(values).float()
    filter_weights(weights, SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p))
    assert weights.tolist() == expected.tolist()


@given(STEPS, st.integers(1, 3), st.data())
def test_kth_largest(steps, num_blocks, data):
    row = np.full(num_blocks * BLOCK, -np.inf, np.float32)
    row[np.random.default_rng(len(steps)).permutation(len(row))[: len(steps)]] = steps
    k = data.draw(st.integers(1, len(row)))
    assert kth_largest(row, k) == np.sort(row)[-k]


@pytest.mark.parametrize("top_p", [1 - 1e-7, 0.999999, 1e-12])
def test_extreme_top_p(top_p):
    """The whole mass but for rounding, or the likeliest token alone."""
    logits = peaked_logits(1, 1024)[0]
    weights = (logits - logits.amax()).exp()
    kept = weights.clone()
    filter_weights(kept, SamplingParams(top_p=top_p))
    chances, total = kept.double(), weights.double().sum()
    rounding = len(weights) * 2**-53
    assert chances.sum() / total >= top_p * (1 - rounding)
    assert (chances.sum() - chances[chances > 0].amin()) / total <= top_p + rounding
