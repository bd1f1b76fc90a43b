"""Sampling where the logits are: tokens by inverse CDF, with the host's uniforms and one wait for the device.

Rows that a temperature and a mask describe are drawn on the device. Filters, bias, penalties, a user's own
code and lists of log-probabilities are the host's, in ``sampler.py``: only rows that need them are copied.
Tokens are those of the host's sampler in torch. The compiled sampler rounds exponentials differently, so a
uniform at the border of two tokens may draw the other one there.

Shapes: ``R`` rows of logits, ``V`` vocabulary, ``B`` blocks of ``BLOCK`` tokens, ``N`` draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from treeshare.devices import upload
from treeshare.errors import ShapeError
from treeshare.sampling.filters import has_filters
from treeshare.sampling.inverse_cdf import inverse_cdf
from treeshare.sampling.masks import WORD, num_words
from treeshare.sampling.sampler import PROCESSED, Sampled, broken_row, sample
from treeshare.sampling.softmax import block_sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.sampling.sampler import Hooks, RowSpec


_HONOURED = frozenset({"temperature", "top_k", "top_p", "min_p"})
"""Parameters of rows that are drawn on the device; filters only where they leave no token out."""


@torch.inference_mode()
def sample_on_device(
    logits: Tensor,
    specs: Sequence[RowSpec],
    draw_rows: NDArray[np.int64],
    uniforms: NDArray[np.float64],
    hooks: Hooks | None = None,
) -> Sampled:
    """As ``sampler.sample``, of logits on any device."""
    if hooks is not None:
        return sample(logits.cpu(), specs, draw_rows, uniforms, hooks)
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
    """Whether temperature and mask say how the row is drawn; filters change nothing at temperature 0."""
    params = spec.params
    if params.temperature > 0 and has_filters(params):
        return False
    return not params.needs_more_than(_HONOURED)


def _draw_on_host(
    logits: Tensor, specs: Sequence[RowSpec], rows: NDArray[np.int64], uniforms: NDArray[np.float64]
) -> Sampled:
    return sample(logits.cpu(), specs, rows, uniforms)


def _draw_plain(
    logits: Tensor, specs: Sequence[RowSpec], rows: NDArray[np.int64], uniforms: NDArray[np.float64]
) -> Sampled:
    temperatures = np.array([spec.params.temperature for spec in specs], np.float32)
    heat, places, numbers = (upload(array, logits.device) for array in (temperatures, rows, uniforms))
    packed = (
        draw_on_device(logits, heat, places, numbers, _masks(logits, specs)).cpu().numpy()
    )  # waits for the step
    tokens, logprobs, is_broken = np.split(packed, [len(rows), 2 * len(rows)])
    if is_broken.any():
        row = int(np.flatnonzero(is_broken)[0])
        raise broken_row("logits" if is_broken[row] == 1 else PROCESSED, row)
    return Sampled(tokens.astype(np.int64), logprobs, [None] * len(rows))


def _masks(logits: Tensor, specs: Sequence[RowSpec]) -> Tensor | None:
    """``[R, num_words(V)]`` int32 on the logits' device; None where all tokens of all rows may be drawn."""
    if all(spec.mask is None for spec in specs):
        return None
    words = np.full((len(specs), num_words(logits.shape[1])), 2**32 - 1, np.uint32)
    for row, spec in zip(words, specs, strict=True):
        if spec.mask is not None:
            row[:] = spec.mask
    return upload(words.view(np.int32), logits.device)


@torch.inference_mode()
def draw_on_device(
    logits: Tensor, temperatures: Tensor, draw_rows: Tensor, uniforms: Tensor, masks: Tensor | None = None
) -> Tensor:
    """Draw tokens, without waiting for the device.

    Args:
        logits: ``[R, V]`` of any floating dtype; not modified.
        temperatures: ``[R]`` float32; zero takes the most likely token, the lowest id on a tie.
        draw_rows: ``[N]`` int64: the row of each draw.
        uniforms: ``[N]`` float64 in [0, 1).
        masks: ``[R, num_words(V)]`` int32: tokens that may be drawn, see ``masks``; None for all.

    Returns:
        ``[2 * N + R]`` float64: tokens, their natural log-probabilities before mask and temperature, and for
        each row whether it holds NaN, infinity or no finite value, 1, or only after its mask, 2: then its
        tokens mean nothing.
    """
    raw = logits.float()
    high = raw.amax(-1, keepdim=True)
    below = raw - high
    log_total = high[:, 0].double() + block_sums(below.exp()).sum(-1).log()
    is_broken = (~torch.isfinite(high[:, 0])).double()
    if masks is not None:
        bits = masks[:, :, None] >> torch.arange(WORD, device=masks.device, dtype=torch.int32)
        allowed = (bits & 1).bool().flatten(1)[:, : raw.shape[1]]
        masked = torch.where(allowed, raw, -torch.inf)
        high = masked.amax(-1, keepdim=True)
        below = masked - high
        is_broken = torch.where(is_broken > 0, is_broken, 2.0 * ~torch.isfinite(high[:, 0]))
    limits = torch.finfo(torch.float32)
    divisors = temperatures.clamp(limits.tiny, limits.max).unsqueeze(-1)
    weights = torch.where(temperatures.unsqueeze(-1) == 0, (below == 0).float(), (below / divisors).exp())
    # At temperature 0 a target of zero draws the first token with a weight: the maximum with the lowest id.
    target_share = torch.where(temperatures[draw_rows] == 0, 0.0, uniforms)
    tokens = inverse_cdf(weights, draw_rows, target_share)
    logprobs = raw[draw_rows, tokens].double() - log_total[draw_rows]
    return torch.cat([tokens.double(), logprobs, is_broken])
