"""Exponentials, sums and log-softmax by the kernels of every level, and by torch, against float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernel_levels import LEVELS, PORTABLE_CODES, portable_by, using_kernels
from treeshare.sampling import softmax

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(params=[*LEVELS, "none", *(["portable"] if PORTABLE_CODES else [])], autouse=True)
def level(request):
    with portable_by("portable") if request.param == "portable" else using_kernels(request.param):
        yield request.param


def rows(vocab_size, scale=6.0):
    draws = torch.Generator().manual_seed(vocab_size)
    logits = scale * torch.randn(3, vocab_size, generator=draws)
    logits[1, vocab_size // 2 :] = -torch.inf
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [1, 15, 16, 257, 5000])
def test_log_softmax(vocab_size, dtype):
    logits = rows(vocab_size).to(dtype)
    logits[1, 0] = 0  # else a row of one token has none that is finite
    expected = logits.double().log_softmax(-1)
    found = softmax.log_softmax(logits)
    assert found.dtype == torch.float32
    assert torch.equal(found == -torch.inf, expected == -torch.inf)
    error = (found.double() - expected)[expected > -torch.inf].abs()
    assert float(error.max()) <= 4 * EPS * max(1.0, float(expected[expected > -torch.inf].abs().max()))
    assert torch.equal(softmax.log_softmax(logits[2]), found[2]), "a row's bits are its own"


def test_exponentials():
    """An argument is rounded once when it is scaled, so that the error grows with it."""
    x = rows(5000).clamp(max=0)
    expected = x.double().exp()
    found = softmax.exp_(x.clone()).double()
    assert torch.equal(found[x == -torch.inf], torch.zeros_like(found[x == -torch.inf]))
    is_normal = expected > torch.finfo(torch.float32).tiny
    error = ((found - expected) / expected)[is_normal].abs()
    assert bool((error <= EPS * (2 + x[is_normal].abs())).all())


@pytest.mark.parametrize("vocab_size", [1, 256, 700])
def test_sums_of_blocks(vocab_size):
    weights = torch.rand(4, vocab_size, generator=torch.Generator().manual_seed(0))
    found, blocks = softmax.block_sums(weights), softmax.in_blocks(weights).double()
    assert bool(((found - blocks.sum(-1)).abs() <= 16 * EPS * blocks.sum(-1)).all())


def test_logarithms():
    x = torch.tensor([1.0, 2.0, 3e5, 1e-3], dtype=torch.float64)
    assert float((softmax.log(x) - x.log()).abs().max()) <= 4e-15
    assert softmax.log_of(0.05) == float(softmax.log(torch.tensor([0.05], dtype=torch.float64)))
