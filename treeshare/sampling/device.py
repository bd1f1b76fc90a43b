"""Sampling where the logits lie: the same uniforms, and tokens by inverse CDF without a copy to the host.

Nothing here waits for the device, so a step that samples can be captured in a CUDA graph. It draws for rows
that a temperature alone describes, as ``sampler.sample`` does; filters and penalties are not here.

Shapes: ``R`` rows of logits, ``V`` vocabulary, ``B`` blocks of ``BLOCK`` tokens, ``N`` draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from treeshare.sampling.filters import BLOCK

if TYPE_CHECKING:
    from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_NUM_ROUNDS = 10


@dataclass(frozen=True, kw_only=True)
class DeviceSampled:
    """What was drawn, on the device of the logits.

    Attributes:
        token_ids: ``[N]`` int64; of no meaning where ``is_broken``.
        logprobs: ``[N]`` float64, natural log of the model's probability before temperature.
        is_broken: ``[R]`` bool: the row holds NaN, infinity or no finite value; for the caller to look at
            when it next waits for the device.
    """

    token_ids: Tensor
    logprobs: Tensor
    is_broken: Tensor


def device_uniforms(seed: int, problem_keys: Tensor, completion_indices: Tensor, positions: Tensor) -> Tensor:
    """``philox.uniforms``, bit for bit, as tensors.

    Args:
        seed: Run seed, in [0, 2**64).
        problem_keys: ``[N]`` int64 with the bits of each ``problem_key``.
        completion_indices: ``[N]`` int64 below 2**32.
        positions: ``[N]`` int64 below 2**32.

    Returns:
        ``[N]`` float64 in [0, 1) on the device of the arguments.
    """
    a, b = problem_keys & _LOW, (problem_keys >> 32) & _LOW
    c, d = completion_indices & _LOW, positions & _LOW
    key_a, key_b = seed & _LOW, seed >> 32
    for _ in range(_NUM_ROUNDS):
        # int64 wraps, and the mask takes away what an arithmetic shift brings in: all 64 bits are right.
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = ((right >> 32) & _LOW) ^ b ^ key_a, right & _LOW
        c, d = ((left >> 32) & _LOW) ^ d ^ key_b, left & _LOW
        key_a, key_b = (key_a + _WEYL[0]) & _LOW, (key_b + _WEYL[1]) & _LOW
    return ((a << 21) | (b >> 11)).double() * 2.0**-53


@torch.inference_mode()
def draw_on_device(
    logits: Tensor, temperatures: Tensor, draw_rows: Tensor, uniforms: Tensor
) -> DeviceSampled:
    """Draw tokens.

    Args:
        logits: ``[R, V]`` of any floating dtype; not modified.
        temperatures: ``[R]`` float32; zero takes the likeliest token, the lowest id on a tie.
        draw_rows: ``[N]`` int64: the row of each draw.
        uniforms: ``[N]`` float64 in [0, 1).
    """
    raw = logits.float()
    high = raw.amax(-1, keepdim=True)
    below = raw - high
    log_total = high[:, 0].double() + _block_sums(below.exp()).sum(-1).log()
    limits = torch.finfo(torch.float32)
    heat = temperatures.clamp(limits.tiny, limits.max).unsqueeze(-1)
    weights = torch.where(temperatures.unsqueeze(-1) == 0, (below == 0).float(), (below / heat).exp())
    # The first of the likeliest: nothing is below a target of zero but what has no weight.
    target_share = torch.where(temperatures[draw_rows] == 0, 0.0, uniforms)
    tokens = _inverse_cdf(weights, draw_rows, target_share)
    return DeviceSampled(
        token_ids=tokens,
        logprobs=raw[draw_rows, tokens].double() - log_total[draw_rows],
        is_broken=~torch.isfinite(high[:, 0]),
    )


def _block_sums(weights: Tensor) -> Tensor:
    """Sums of whole blocks: ``[R, V]`` float32 to ``[R, B]`` float64."""
    return _blocks(weights).sum(-1).double()


def _blocks(weights: Tensor) -> Tensor:
    """``[R, B, BLOCK]``, padded with zeros."""
    padded = functional.pad(weights, (0, -weights.shape[1] % BLOCK))
    return padded.view(weights.shape[0], -1, BLOCK)


def _inverse_cdf(weights: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds ``share * total``; never one without weight.

    Two levels: the block by a float64 cumulative sum over block sums, then the token inside it.
    """
    sums = _block_sums(weights)
    cumulative = sums.cumsum(-1)[rows]
    target = shares.unsqueeze(-1) * cumulative[:, -1:]
    block = _first_or_last((sums > 0)[rows], cumulative > target)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inside = _blocks(weights)[rows, block]
    reached = inside.double().cumsum(-1) > target - before.unsqueeze(-1)
    return (block * BLOCK + _first_or_last(inside > 0, reached)).clamp(max=weights.shape[1] - 1)


def _first_or_last(allowed: Tensor, reached: Tensor) -> Tensor:
    """The first place that is ``allowed`` and ``reached``, for each row; else the last that is allowed."""
    size = allowed.shape[-1]
    place = torch.arange(size, device=allowed.device)
    first = torch.where(allowed & reached, place, size).amin(-1)
    last = torch.where(allowed, place, 0).amax(-1)
    return torch.where(first < size, first, last)
