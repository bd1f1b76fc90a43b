"""Draws tokens by inverse CDF, in token-id order, over the processed distribution.

A row's result is the same bits in any company: elements are processed one by one, sums run over fixed blocks
of one row, and nothing is reduced across rows.

Shapes: ``R`` rows of logits, ``V`` vocabulary, ``B`` blocks of ``BLOCK`` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from treeshare.errors import ShapeError
from treeshare.sampling.filters import filter_weights, has_filters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from treeshare.sampling.params import SamplingParams

BLOCK = 256
"""Tokens per block of the two-level cumulative sum."""

ROWS_AT_ONCE = 16
"""Rows processed together: their float32 copies stay in cache."""


@dataclass(frozen=True, slots=True)
class RowSpec:
    """How one row is sampled.

    Attributes:
        params: Its parameters.
        generated: Tokens generated so far.
        prompt: Tokens of the prompt; read only when there are penalties.
        banned: Tokens that may not come now (ends before ``min_tokens``).
    """

    params: SamplingParams
    generated: Sequence[int]
    prompt: Sequence[int]
    banned: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability before temperature, and its rank (1 is the likeliest)."""

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was drawn.

    Attributes:
        token_ids: ``[num_draws]`` int64.
        logprobs: ``[num_draws]`` float64, natural log of the model's probability before temperature.
        top: Per draw, the drawn token and the likeliest ones, where asked for.
    """

    token_ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    top: list[list[TokenLogprob] | None]


@torch.inference_mode()
def sample(
    logits: Tensor, specs: Sequence[RowSpec], draw_rows: NDArray[np.int64], uniforms: NDArray[np.float64]
) -> Sampled:
    """Draw tokens.

    Args:
        logits: ``[R, V]`` float32 or bfloat16; not modified.
        specs: ``[R]``.
        draw_rows: ``[num_draws]`` ascending: the row of each draw. Several draws may share a row.
        uniforms: ``[num_draws]`` in [0, 1).

    Raises:
        ShapeError: If the lengths do not fit.
        FloatingPointError: If a row of logits holds NaN or no finite value: the model or the engine is
            broken.
    """
    if len(specs) != logits.shape[0] or draw_rows.shape != uniforms.shape:
        raise ShapeError(
            f"sample: {logits.shape[0]} rows and {len(specs)} specs, {draw_rows.shape} rows of draws and "
            f"{uniforms.shape} uniforms"
        )
    result = Sampled(np.zeros(len(draw_rows), np.int64), np.zeros(len(draw_rows)), [None] * len(draw_rows))
    for first in range(0, len(specs), ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, len(specs))
        low, high = np.searchsorted(draw_rows, (first, last))
        if low < high:
            _sample_block(
                logits[first:last],
                specs[first:last],
                torch.from_numpy(draw_rows[low:high] - first),
                torch.from_numpy(uniforms[low:high]),
                result,
                int(low),
            )
    return result


def _sample_block(
    logits: Tensor, specs: Sequence[RowSpec], rows: Tensor, uniforms: Tensor, result: Sampled, offset: int
) -> None:
    """Sample some rows; ``result`` from ``offset`` on is filled in."""
    raw = _padded(logits)
    high = raw.amax(-1, keepdim=True)
    if not torch.isfinite(high).all():
        bad = torch.nonzero(~torch.isfinite(high[:, 0]))[0].item()
        raise FloatingPointError(f"logits: row {bad} of a step holds NaN or no finite value")
    total = _block_sums((raw - high).exp_()).sum(-1)
    log_total = high[:, 0].double() + total.log()
    processed = _processed(raw, specs)
    greedy = torch.tensor([spec.params.temperature == 0 for spec in specs])
    tokens = torch.empty(len(rows), dtype=torch.int64)
    if greedy.any():
        tokens[greedy[rows]] = _argmax(processed[greedy])[(greedy.cumsum(0) - 1)[rows[greedy[rows]]]]
    if not greedy.all():
        drawn = ~greedy
        place = (drawn.cumsum(0) - 1)[rows[drawn[rows]]]
        chosen = [spec for spec, is_greedy in zip(specs, greedy.tolist(), strict=True) if not is_greedy]
        weights = _weights(processed if drawn.all() else processed[drawn], chosen)
        tokens[drawn[rows]] = _inverse_cdf(weights, place, uniforms[drawn[rows]])
    logprobs = raw[rows, tokens].double() - log_total[rows]
    end = offset + len(rows)
    result.token_ids[offset:end] = tokens.numpy()
    result.logprobs[offset:end] = logprobs.numpy()
    for draw, (row, token) in enumerate(zip(rows.tolist(), tokens.tolist(), strict=True)):
        count = specs[row].params.logprobs
        if count is not None:
            result.top[offset + draw] = _top(raw[row], log_total[row].item(), token, count)


def _padded(logits: Tensor) -> Tensor:
    """A float32 copy with the vocabulary padded by ``-inf`` to whole blocks."""
    num_rows, vocab_size = logits.shape
    raw = torch.full((num_rows, -(-vocab_size // BLOCK) * BLOCK), -torch.inf)
    raw[:, :vocab_size] = logits
    return raw


def _block_sums(weights: Tensor) -> Tensor:
    """Sums of whole blocks: ``[R, V]`` float32 to ``[R, B]`` float64."""
    return weights.view(weights.shape[0], -1, BLOCK).sum(-1).double()


def _processed(raw: Tensor, specs: Sequence[RowSpec]) -> Tensor:
    """Logits after penalties and bans; ``raw`` itself when there are none."""
    if not any(spec.params.has_penalties or spec.banned for spec in specs):
        return raw
    processed = raw.clone()
    for row, spec in zip(processed, specs, strict=True):
        if spec.params.has_penalties:
            _penalise(row, spec)
        if spec.banned:
            row[torch.tensor(sorted(spec.banned))] = -torch.inf
    return processed


def _penalise(row: Tensor, spec: RowSpec) -> None:
    """Apply repetition, frequency and presence penalties to ``row`` in place."""
    params = spec.params
    if params.repetition_penalty != 1:
        seen = torch.unique(torch.tensor([*spec.prompt, *spec.generated], dtype=torch.int64))
        values = row[seen]
        row[seen] = torch.where(
            values > 0, values / params.repetition_penalty, values * params.repetition_penalty
        )
    if spec.generated and (params.frequency_penalty or params.presence_penalty):
        ids, counts = torch.unique(torch.tensor(spec.generated, dtype=torch.int64), return_counts=True)
        row[ids] -= params.frequency_penalty * counts + params.presence_penalty


def _weights(processed: Tensor, specs: Sequence[RowSpec]) -> Tensor:
    """Unnormalised probabilities after temperature and filters; the likeliest token weighs 1."""
    temperature = torch.tensor([spec.params.temperature for spec in specs]).unsqueeze(-1)
    weights = (processed - processed.amax(-1, keepdim=True)).div_(temperature).exp_()
    for row, spec in zip(weights, specs, strict=True):
        if has_filters(spec.params):
            filter_weights(row, spec.params)
    return weights


def _inverse_cdf(weights: Tensor, rows: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds ``uniform * total``, for each draw.

    Two levels: the block by a float64 cumulative sum over block sums, then the token inside it. A token
    without weight is never drawn, whatever the rounding.
    """
    sums = _block_sums(weights)
    cumulative = sums.cumsum(-1)[rows]
    target = uniforms.unsqueeze(-1) * cumulative[:, -1:]
    positive = sums[rows] > 0
    block = _first(positive & (cumulative > target), fallback=_last(positive))
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inside = weights.view(weights.shape[0], -1, BLOCK)[rows, block]
    reached = inside.double().cumsum(-1) > target - before.unsqueeze(-1)
    positive = inside > 0
    return block * BLOCK + _first(positive & reached, fallback=_last(positive))


def _first(mask: Tensor, fallback: Tensor) -> Tensor:
    """Index of the first True of each row; ``fallback`` where there is none."""
    size = mask.shape[-1]
    index = torch.where(mask, torch.arange(size), size).amin(-1)
    return torch.where(index < size, index, fallback)


def _last(mask: Tensor) -> Tensor:
    """Index of the last True of each row."""
    return torch.where(mask, torch.arange(mask.shape[-1]), 0).amax(-1)


def _argmax(logits: Tensor) -> Tensor:
    """The likeliest token of each row, the lowest id on a tie."""
    blocks = logits.view(len(logits), -1, BLOCK)
    high = blocks.amax(-1)
    block = _first(high == high.amax(-1, keepdim=True), fallback=_last(high > -torch.inf))
    inside = blocks[torch.arange(len(logits)), block]
    best = inside == inside.amax(-1, keepdim=True)
    return block * BLOCK + _first(best, fallback=_last(best))


def _top(raw: Tensor, log_total: float, token: int, count: int) -> list[TokenLogprob]:
    """The drawn token, then the ``count`` likeliest, ties by id."""
    rank = int((raw > raw[token]).sum()) + 1
    entries = [TokenLogprob(token, raw[token].item() - log_total, rank)]
    if count == 0:
        return entries
    border = raw.topk(min(count, len(raw))).values[-1]
    ids = torch.nonzero(raw >= border)[:, 0]
    order = torch.sort(raw[ids], descending=True, stable=True).indices[:count]
    entries += [
        TokenLogprob(int(ids[i]), raw[ids[i]].item() - log_total, place + 1)
        for place, i in enumerate(order.tolist())
        if int(ids[i]) != token
    ]
    return entries
