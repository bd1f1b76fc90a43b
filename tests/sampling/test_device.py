"""Sampling on a device, on CPU tensors: the uniforms and the tokens of the host's sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treeshare.sampling import SamplingParams, problem_key, uniforms
from treeshare.sampling.device import device_uniforms, draw_on_device
from treeshare.sampling.sampler import RowSpec, sample

WORD = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    draws=st.lists(st.tuples(st.integers(0, 2**64 - 1), WORD, WORD), min_size=1, max_size=20),
)
def test_uniforms_are_the_hosts(seed, draws):
    keys, indices, positions = (np.array(column, dtype=np.uint64) for column in zip(*draws, strict=True))
    tensors = (torch.from_numpy(column.view(np.int64)) for column in (keys, indices, positions))
    expected = uniforms(seed, keys, indices, positions)
    assert np.array_equal(device_uniforms(seed, *tensors).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [1, 100, 5000])
def test_tokens_are_the_hosts(vocab_size, dtype):
    rng = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(12, vocab_size, generator=rng)).to(dtype)
    logits[3, vocab_size // 2 :] = -torch.inf if vocab_size > 1 else 0.0
    heat = [0.0, 0.2, 0.7, 1.0, 1.0, 3.0, 1e-30, 1e30, 0.0, 0.8, 0.8, 0.8]
    rows = np.repeat(np.arange(12), 50)
    numbers = uniforms(7, [problem_key("p")] * 600, range(600), [3] * 600)
    numbers[::50], numbers[1::50] = 0.0, 1 - 2.0**-53
    specs = [RowSpec(SamplingParams(temperature=t, logprobs=0), [], []) for t in heat]
    expected = sample(logits, specs, rows, numbers)
    drawn = draw_on_device(
        logits, torch.tensor(heat, dtype=torch.float32), torch.from_numpy(rows), torch.from_numpy(numbers)
    )
    assert np.array_equal(drawn.token_ids.numpy(), expected.token_ids)
    assert np.abs(drawn.logprobs.numpy() - expected.logprobs).max() <= 16 * np.finfo(np.float32).eps
    assert not drawn.is_broken.any()


def test_broken_rows_are_told():
    logits = torch.zeros(4, 10)
    logits[0, 3], logits[1], logits[2, 5] = torch.nan, -torch.inf, torch.inf
    zeros = torch.zeros(4, dtype=torch.float64)
    drawn = draw_on_device(logits, torch.ones(4), torch.arange(4), zeros)
    assert drawn.is_broken.tolist() == [True, True, True, False]
