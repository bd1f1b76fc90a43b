"""Sampling where the logits lie: tokens by inverse CDF, with the host's uniforms and one wait for the device.

Rows that a temperature alone describes are drawn on the device. Filters, penalties, bans and lists of
log-probabilities are the host's, in ``sampler.py``: only the rows that want them are copied.
Tokens are those of the host's sampler in torch; its compiled form rounds exponentials otherwise, so that a
uniform at the border of two tokens may fall to the other.

Shapes: ``R`` rows of logits, ``V`` vocabulary, ``B`` blocks of ``BLOCK`` tokens, ``N`` draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from treeshare.devices import upload
from treeshare.errors import ShapeError
from treeshare.sampling.filters import BLOCK, has_filters
from treeshare.sampling.sampler import Sampled, broken_row, sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.sampling.sampler import RowSpec


@torch.inference_mode()
def sample_on_device(
    logits: Tensor, specs: Sequence[RowSpec], draw_rows: NDArray[np.int64], uniforms: NDArray[np.float64]
) -> Sampled:
    """As ``sampler.sample``, of logits on any device."""
    if len(specs) != logits.shape[0] or draw_rows.shape != uniforms.shape:
        raise ShapeError(f"sample: {len(specs)} specs for {logits.shape[0]} rows, or draws without a number")
    is_plain = np.array([_is_plain(spec) for spec in specs], dtype=bool)
    result = Sampled(np.zeros(len(draw_rows), np.int64), np.zeros(len(draw_rows)), [None] * len(draw_rows))
    for rows, draw in ((np.flatnonzero(is_plain), _draw_plain), (np.flatnonzero(~is_plain), _draw_on_host)):
        draws = np.flatnonzero(np.isin(draw_rows, rows))
        if len(draws):
            chosen = logits if len(rows) == len(specs) else logits[upload(rows, logits.device)]
            places = np.searchsorted(rows, draw_rows[draws])
            drawn = draw(chosen, [specs[row] for row in rows.tolist()], places, uniforms[draws])
            result.token_ids[draws], result.logprobs[draws] = drawn.token_ids, drawn.logprobs
            for place, top in zip(draws, drawn.top, strict=True):
                result.top[place] = top
    return result


def _is_plain(spec: RowSpec) -> bool:
    params = spec.params
    filtered = params.temperature > 0 and has_filters(params)
    return not (filtered or params.has_penalties or spec.banned) and params.logprobs is None


def _draw_on_host(
    logits: Tensor, specs: Sequence[RowSpec], rows: NDArray[np.int64], uniforms: NDArray[np.float64]
) -> Sampled:
    return sample(logits.cpu(), specs, rows, uniforms)


def _draw_plain(
    logits: Tensor, specs: Sequence[RowSpec], rows: NDArray[np.int64], uniforms: NDArray[np.float64]
) -> Sampled:
    temperatures = np.array([spec.params.temperature for spec in specs], np.float32)
    arguments = (upload(array, logits.device) for array in (temperatures, rows, uniforms))
    packed = draw_on_device(logits, *arguments).cpu().numpy()  # waits for the step
    tokens, logprobs, is_broken = np.split(packed, [len(rows), 2 * len(rows)])
    if is_broken.any():
        raise broken_row("logits", int(np.flatnonzero(is_broken)[0]))
    return Sampled(tokens.astype(np.int64), logprobs, [None] * len(rows))


@torch.inference_mode()
def draw_on_device(logits: Tensor, temperatures: Tensor, draw_rows: Tensor, uniforms: Tensor) -> Tensor:
    """Draw tokens; waits for nothing.

    Args:
        logits: ``[R, V]`` of any floating dtype; not modified.
        temperatures: ``[R]`` float32; zero takes the likeliest token, the lowest id on a tie.
        draw_rows: ``[N]`` int64: the row of each draw.
        uniforms: ``[N]`` float64 in [0, 1).

    Returns:
        ``[2 * N + R]`` float64: tokens, their natural log-probabilities before temperature, and for each row
        whether it holds NaN, infinity or no finite value: then its tokens mean nothing.
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
    logprobs = raw[draw_rows, tokens].double() - log_total[draw_rows]
    return torch.cat([tokens.double(), logprobs, (~torch.isfinite(high[:, 0])).double()])


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
