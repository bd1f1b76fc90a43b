"""Sampling on a device, on CPU tensors: the tokens of the host's sampler, from the same uniforms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.kernel_levels import using_kernels
from treeshare.errors import ShapeError
from treeshare.sampling import SamplingParams, problem_key, uniforms
from treeshare.sampling.device import draw_on_device, sample_on_device
from treeshare.sampling.sampler import RowSpec, sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [1, 100, 5000])
def test_tokens_are_the_hosts(vocab_size, dtype):
    rng = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(14, vocab_size, generator=rng)).to(dtype)
    logits[3, vocab_size // 2 :] = -torch.inf if vocab_size > 1 else 0.0
    heat = [0.0, 0.2, 0.7, 1.0, 1.0, 3.0, 1e-30, 1e30, 0.0, 0.8, 0.8, 0.8]
    rows = np.repeat(np.arange(14), 50)
    numbers = uniforms(7, [problem_key("p")] * 700, range(700), [3] * 700)
    numbers[::50], numbers[1::50] = 0.0, 1 - 2.0**-53
    specs = [RowSpec(SamplingParams(temperature=t), [], []) for t in heat]
    specs.insert(2, RowSpec(SamplingParams(top_k=5, logprobs=2), [], []))
    specs.append(RowSpec(SamplingParams(repetition_penalty=1.5), [0], [0]))
    by_torch = [replace(spec, params=replace(spec.params, logprobs=2)) for spec in specs]
    with using_kernels("none"):  # the compiled exponential rounds otherwise
        expected = sample(logits, by_torch, rows, numbers)
        drawn = sample_on_device(logits, specs, rows, numbers)
    assert np.array_equal(drawn.token_ids, expected.token_ids)
    assert np.abs(drawn.logprobs - expected.logprobs).max() <= 16 * np.finfo(np.float32).eps
    assert drawn.top == [top if row == 2 else None for row, top in zip(rows, expected.top, strict=True)]


def test_broken_rows_are_told():
    logits = torch.zeros(4, 10)
    logits[0, 3], logits[1], logits[2, 5] = torch.nan, -torch.inf, torch.inf
    zeros = torch.zeros(4, dtype=torch.float64)
    drawn = draw_on_device(logits, torch.ones(4), torch.arange(4), zeros)
    assert drawn[8:].tolist() == [1, 1, 1, 0]
    specs = [RowSpec(SamplingParams(), [], [])] * 3
    with pytest.raises(FloatingPointError, match=r"^logits: row 0 of a step has a NaN, an infinity"):
        sample_on_device(logits[1:], specs, np.arange(3), np.zeros(3))


def test_lengths_must_fit():
    with pytest.raises(ShapeError, match=r"^sample: 0 specs for 2 rows"):
        sample_on_device(torch.zeros(2, 10), [], np.arange(2), np.zeros(2))
