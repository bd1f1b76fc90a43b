"""Tokens from weights and uniform numbers: inverse CDF in token-id order.

A row is cut into blocks of ``BLOCK`` tokens; sums run over whole blocks of one row, so a row's result is the
same bits in any batch.

Shapes: ``R`` rows, ``V`` vocabulary, ``B`` blocks, ``N`` draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

from treeshare.sampling.softmax import BLOCK, block_sums, in_blocks


def inverse_cdf(weights: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds ``share * total``; never one without weight.

    Two levels: the block by a float64 cumulative sum over block sums, then the token inside it.

    Args:
        weights: ``[R, V]`` float32, not negative.
        rows: ``[N]`` int64: the row of each draw.
        shares: ``[N]`` float64 in [0, 1).

    Returns:
        ``[N]`` int64 tokens; for a row of zeros 0.
    """
    sums = block_sums(weights)
    cumulative = sums.cumsum(-1)[rows]
    target = shares.unsqueeze(-1) * cumulative[:, -1:]
    block = _first_or_last((sums > 0)[rows], cumulative > target)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inside = in_blocks(weights)[rows, block]
    reached = inside.double().cumsum(-1) > target - before.unsqueeze(-1)
    return (block * BLOCK + _first_or_last(inside > 0, reached)).clamp(max=weights.shape[1] - 1)


def _first_or_last(allowed: Tensor, reached: Tensor) -> Tensor:
    """The first place that is ``allowed`` and ``reached``, for each row; else the last that is allowed."""
    size = allowed.shape[-1]
    place = torch.arange(size, device=allowed.device)
    first = torch.where(allowed & reached, place, size).amin(-1)
    last = torch.where(allowed, place, 0).amax(-1)
    return torch.where(first < size, first, last)
