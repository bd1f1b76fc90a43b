"""Draws tokens by inverse CDF, in token-id order, over the processed distribution.

A row's result does not depend on the other rows, to the bit: elements are processed one by one, sums run over
fixed blocks of one row, and nothing is reduced across rows.

Shapes: ``R`` rows of logits, ``V`` vocabulary, ``B`` blocks of ``BLOCK`` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from treeshare.errors import ShapeError
from treeshare.sampling.compiled import can_draw, draw_compiled
from treeshare.sampling.filters import filter_weights, has_filters, kth_largest
from treeshare.sampling.inverse_cdf import inverse_cdf
from treeshare.sampling.softmax import BLOCK, block_sums, exp_, log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from treeshare.sampling.params import SamplingParams

ROWS_AT_ONCE = 16
"""Rows processed together: their float32 copies stay in cache."""


@dataclass(frozen=True, slots=True)
class RowSpec:
    """How one row is sampled.

    Attributes:
        params: Its parameters.
        generated: Tokens generated so far.
        prompt: Tokens of the prompt; read only when there are penalties.
        banned: Tokens that may not be drawn now: those that would end a completion of ``min_tokens`` or
            fewer, themselves counted.
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
    compiled = np.array([can_draw(spec.params) and not spec.banned for spec in specs], dtype=bool)
    if compiled.any():
        _draw_compiled(logits, specs, np.flatnonzero(compiled), draw_rows, uniforms, result)
    others = np.flatnonzero(~compiled)
    scratch = torch.empty(3, min(len(others), ROWS_AT_ONCE), -(-logits.shape[1] // BLOCK) * BLOCK)
    for first in range(0, len(others), ROWS_AT_ONCE):
        rows = others[first : first + ROWS_AT_ONCE]
        draws = np.flatnonzero(np.isin(draw_rows, rows))
        if len(draws):
            group = _RowGroup(logits, [specs[row] for row in rows], scratch[:, : len(rows)], rows)
            places = torch.from_numpy(np.searchsorted(rows, draw_rows[draws]))
            tokens = group.draw(places, torch.from_numpy(uniforms[draws]))
            result.token_ids[draws] = tokens.numpy()
            result.logprobs[draws] = group.logprobs(places, tokens).numpy()
            for draw, top in zip(draws, group.tops(places, tokens), strict=True):
                result.top[draw] = top
    return result


@torch.inference_mode()
def drawn_logprobs(
    logits: Tensor, specs: Sequence[RowSpec], token_ids: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Log-probabilities of tokens in the distribution that ``sample`` draws them from.

    ``Sampled.logprobs`` are the model's own; these are after penalties, temperature and filters, as the
    importance weights of training need them.

    Args:
        logits: ``[R, V]`` float32 or bfloat16; not modified.
        specs: ``[R]``; ``generated`` without the token, temperatures above 0.
        token_ids: ``[R]``.

    Returns:
        ``[R]`` natural logs; ``-inf`` for a token that cannot be drawn.

    Raises:
        FloatingPointError: As ``sample``.
    """
    result = np.empty(len(specs))
    scratch = torch.empty(3, min(len(specs), ROWS_AT_ONCE), -(-logits.shape[1] // BLOCK) * BLOCK)
    for rows in np.split(np.arange(len(specs)), range(ROWS_AT_ONCE, len(specs), ROWS_AT_ONCE)):
        group = _RowGroup(logits, [specs[row] for row in rows], scratch[:, : len(rows)], rows)
        result[rows] = group.drawn_logprobs(torch.from_numpy(token_ids[rows])).numpy()
    return result


def _draw_compiled(
    logits: Tensor,
    specs: Sequence[RowSpec],
    rows: NDArray[np.int64],
    draw_rows: NDArray[np.int64],
    uniforms: NDArray[np.float64],
    result: Sampled,
) -> None:
    """Draw for ``rows``, for which ``can_draw`` holds, into ``result``."""
    draws = np.flatnonzero(np.isin(draw_rows, rows))
    indptr = np.searchsorted(draw_rows[draws], [*rows, len(specs)])
    params = [specs[row].params for row in rows]
    dense = logits if logits.stride(1) == 1 else logits.contiguous()
    tokens, logprobs, broken = draw_compiled(dense, rows, params, indptr, uniforms[draws])
    if len(broken):
        raise broken_row("logits", int(broken[0]))
    result.token_ids[draws], result.logprobs[draws] = tokens, logprobs


def broken_row(name: str, row: int) -> FloatingPointError:
    """The error for a ``row`` of ``name`` that holds NaN, infinity or no finite value."""
    return FloatingPointError(f"{name}: row {row} of a step holds NaN, infinity or no finite value")


class _RowGroup:
    """Up to ``ROWS_AT_ONCE`` rows of a step, which are drawn from together.

    Args:
        logits: ``[num_rows, vocab_size]`` of the step.
        specs: ``[R]``.
        scratch: ``[3, R, V]`` float32, written to: the vocabulary padded to whole blocks.
        rows: ``[R]``: which rows of the step.
    """

    def __init__(
        self, logits: Tensor, specs: Sequence[RowSpec], scratch: Tensor, rows: NDArray[np.int64]
    ) -> None:
        self._specs, self._rows = specs, rows
        self._raw, self._processed, self._work = scratch.unbind()
        self._vocab_size = logits.shape[1]
        self._raw[:, : logits.shape[1]] = logits[torch.from_numpy(rows)]
        self._raw[:, logits.shape[1] :] = -torch.inf
        self._high = self._finite_maxima(self._raw, "logits")
        total = _totals(exp_(torch.sub(self._raw, self._high, out=self._work)))
        self._log_total = self._high[:, 0].double() + log(total)

    def draw(self, rows: Tensor, uniforms: Tensor) -> Tensor:
        """A token for each of ``rows``."""
        processed, high = self._after_penalties()
        greedy = torch.tensor([spec.params.temperature == 0 for spec in self._specs])[rows]
        if greedy.all():
            return _argmax(processed, high)[rows]
        weights = _weights(processed, high, self._specs, self._work)
        tokens = inverse_cdf(weights, rows, uniforms)
        if greedy.any():
            tokens = torch.where(greedy, _argmax(processed, high)[rows], tokens)
        return tokens

    def drawn_logprobs(self, tokens: Tensor) -> Tensor:
        """Log-probabilities of one token for each row in the distribution it is drawn from, float64."""
        processed, high = self._after_penalties()
        scores = processed.gather(1, tokens[:, None])[:, 0].double() - high[:, 0].double()
        weights = _weights(processed, high, self._specs, self._work)
        scores /= torch.tensor([spec.params.temperature for spec in self._specs], dtype=torch.float64)
        is_left = weights.gather(1, tokens[:, None])[:, 0] > 0
        return torch.where(is_left, scores - log(_totals(weights)), -torch.inf)

    def logprobs(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities of ``tokens`` before temperature, float64."""
        return self._raw[rows, tokens].double() - self._log_total[rows]

    def tops(self, rows: Tensor, tokens: Tensor) -> list[list[TokenLogprob] | None]:
        """For each draw the token and the likeliest ones, where asked for."""
        raw, log_total = self._raw.numpy(), self._log_total.tolist()
        counts = [self._num_top(self._specs[row].params.logprobs) for row in rows.tolist()]
        return [
            None if count is None else _top(raw[row], log_total[row], token, count)
            for row, token, count in zip(rows.tolist(), tokens.tolist(), counts, strict=True)
        ]

    def _num_top(self, wanted: int | None) -> int | None:
        """How many likeliest tokens are reported: -1 asks for all."""
        return None if wanted is None else self._vocab_size if wanted < 0 else min(wanted, self._vocab_size)

    def _after_penalties(self) -> tuple[Tensor, Tensor]:
        """Logits after penalties and bans, and the maximum of each row."""
        if not any(spec.params.has_penalties or spec.banned for spec in self._specs):
            return self._raw, self._high
        processed = _process(self._processed.copy_(self._raw), self._specs)
        return processed, self._finite_maxima(processed, "logits after penalties and bans")

    def _finite_maxima(self, logits: Tensor, name: str) -> Tensor:
        """The maximum of each row, ``[R, 1]``; raises ``FloatingPointError`` where it is not finite."""
        high = logits.amax(-1, keepdim=True)
        broken = torch.nonzero(~torch.isfinite(high[:, 0]))
        if len(broken):
            raise broken_row(name, int(self._rows[int(broken[0])]))
        return high


def _process(logits: Tensor, specs: Sequence[RowSpec]) -> Tensor:
    """Apply penalties and bans to ``logits`` in place."""
    for row, spec in zip(logits, specs, strict=True):
        if spec.params.has_penalties:
            _penalise(row, spec)
        if spec.banned:
            row[torch.tensor(sorted(spec.banned))] = -torch.inf
    return logits


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


def _weights(logits: Tensor, high: Tensor, specs: Sequence[RowSpec], work: Tensor) -> Tensor:
    """Unnormalised probabilities after temperature and filters; the likeliest token weighs 1.

    Args:
        logits: ``[R, V]`` after penalties; not modified.
        high: ``[R, 1]``: the maximum of each row.
        specs: ``[R]``; rows of temperature 0 are not filtered: nothing is drawn from them.
        work: ``[R, V]``; overwritten, and returned.
    """
    limits = torch.finfo(torch.float32)
    temperatures = [min(max(spec.params.temperature, limits.tiny), limits.max) for spec in specs]
    divisors = torch.tensor(temperatures, dtype=torch.float32).unsqueeze(-1)
    weights = exp_(torch.sub(logits, high, out=work).div_(divisors))
    for row, scores, spec in zip(weights, logits, specs, strict=True):
        if spec.params.temperature > 0 and has_filters(spec.params):
            filter_weights(row, scores, spec.params)
    return weights


def _totals(weights: Tensor) -> Tensor:
    """``[R]`` float64 sums of rows, one block after the other."""
    return block_sums(weights).cumsum(-1)[:, -1]


def _first(mask: Tensor, fallback: Tensor) -> Tensor:
    """Index of the first True of each row; ``fallback`` where there is none."""
    size = mask.shape[-1]
    index = torch.where(mask, torch.arange(size), size).amin(-1)
    return torch.where(index < size, index, fallback)


def _argmax(logits: Tensor, high: Tensor) -> Tensor:
    """The lowest id of the tokens as likely as ``high``, for each row."""
    blocks = logits.view(len(logits), -1, BLOCK)
    never = torch.zeros(len(logits), dtype=torch.int64)
    block = _first(blocks.amax(-1) == high, fallback=never)
    return block * BLOCK + _first(blocks[torch.arange(len(logits)), block] == high, fallback=never)


def _top(raw: NDArray[np.float32], log_total: float, token: int, count: int) -> list[TokenLogprob]:
    """The drawn token, then the ``count`` likeliest, ties by id."""
    rank = int(np.count_nonzero(raw > raw[token])) + 1
    entries = [TokenLogprob(token, float(raw[token]) - log_total, rank)]
    if count == 0:
        return entries
    ids = np.flatnonzero(raw >= kth_largest(raw, count))
    ids = ids[np.argsort(-raw[ids], stable=True)][:count]
    entries += [
        TokenLogprob(int(i), float(raw[i]) - log_total, place)
        for place, i in enumerate(ids, start=1)
        if i != token
    ]
    return entries
