"""Draws tokens by inverse CDF, in token-id order, over the processed distribution.

A row's result does not depend on the other rows, to the bit: elements are processed one by one, sums run over
fixed blocks of one row, and nothing is reduced across rows.

Shapes: ``R`` rows of logits, ``V`` vocabulary, ``B`` blocks of ``BLOCK`` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from treeshare.errors import ShapeError
from treeshare.sampling.compiled import can_draw, draw_compiled
from treeshare.sampling.filters import filter_weights, has_filters, keep_min_p, kth_largest
from treeshare.sampling.inverse_cdf import inverse_cdf
from treeshare.sampling.masks import unpacked
from treeshare.sampling.softmax import BLOCK, block_sums, exp_, log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from treeshare.sampling.masks import Mask
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
        mask: Tokens that may be drawn now, see ``masks``; None for all.
    """

    params: SamplingParams
    generated: Sequence[int]
    prompt: Sequence[int]
    mask: Mask | None = None


class Hooks(Protocol):
    """What a user's own code does to the logits of all rows of a step."""

    def before_penalties(self, logits: Tensor) -> Tensor:
        """Change ``[R, V]`` float32 logits, after masks and bias; in place or not."""

    def after_temperature(self, logits: Tensor) -> Tensor:
        """Change them after temperature and min-p, with a maximum of 0; the most likely token stays."""

    @property
    def is_after_temperature(self) -> bool:
        """Whether ``after_temperature`` does anything."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability before temperature, and its rank (1 is the most likely)."""

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was drawn.

    Attributes:
        token_ids: ``[num_draws]`` int64.
        logprobs: ``[num_draws]`` float64, natural log of the model's probability before temperature.
        top: Per draw, the drawn token and the most likely ones, where asked for.
    """

    token_ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    top: list[list[TokenLogprob] | None]


@torch.inference_mode()
def sample(
    logits: Tensor,
    specs: Sequence[RowSpec],
    draw_rows: NDArray[np.int64],
    uniforms: NDArray[np.float64],
    hooks: Hooks | None = None,
) -> Sampled:
    """Draw tokens.

    Args:
        logits: ``[R, V]`` float32 or bfloat16; not modified.
        specs: ``[R]``.
        draw_rows: ``[num_draws]`` ascending: the row of each draw. Several draws may share a row.
        uniforms: ``[num_draws]`` in [0, 1).
        hooks: A user's own code, for all rows; then no row takes the fast path.

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
    compiled = np.array([hooks is None and can_draw(spec.params) for spec in specs], dtype=bool)
    if compiled.any():
        _draw_compiled(logits, specs, np.flatnonzero(compiled), draw_rows, uniforms, result)
    others = np.flatnonzero(~compiled)
    num_at_once = ROWS_AT_ONCE if hooks is None else max(len(others), 1)
    scratch = torch.empty(3, min(len(others), num_at_once), -(-logits.shape[1] // BLOCK) * BLOCK)
    for first in range(0, len(others), num_at_once):
        rows = others[first : first + num_at_once]
        draws = np.flatnonzero(np.isin(draw_rows, rows))
        if len(draws):
            group = _RowGroup(logits, [specs[row] for row in rows], scratch[:, : len(rows)], rows, hooks)
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

    ``Sampled.logprobs`` are the model's; these are after masks, penalties, temperature and filters, as the
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
    chosen = [specs[row] for row in rows]
    dense = logits if logits.stride(1) == 1 else logits.contiguous()
    tokens, logprobs, broken = draw_compiled(
        dense, rows, [spec.params for spec in chosen], [spec.mask for spec in chosen], indptr, uniforms[draws]
    )
    if broken.any():
        row = int(np.flatnonzero(broken)[0])
        raise broken_row("logits" if broken[row] == 1 else PROCESSED, int(rows[row]))
    result.token_ids[draws], result.logprobs[draws] = tokens, logprobs


PROCESSED = "logits after masks and penalties"


def broken_row(name: str, row: int) -> FloatingPointError:
    """The error for a ``row`` of ``name`` that holds NaN, infinity or no finite value."""
    return FloatingPointError(f"{name}: row {row} of a step has a NaN, an infinity or no finite value")


class _RowGroup:
    """Up to ``ROWS_AT_ONCE`` rows of a step, which are drawn from together.

    Args:
        logits: ``[num_rows, vocab_size]`` of the step.
        specs: ``[R]``.
        scratch: ``[3, R, V]`` float32, written to: the vocabulary padded to whole blocks.
        rows: ``[R]``: which rows of the step.
        hooks: A user's own code; then these are all rows of the step.
    """

    def __init__(
        self,
        logits: Tensor,
        specs: Sequence[RowSpec],
        scratch: Tensor,
        rows: NDArray[np.int64],
        hooks: Hooks | None = None,
    ) -> None:
        self._specs, self._rows, self._hooks = specs, rows, hooks
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
        tokens = inverse_cdf(self._weights(processed, high), rows, uniforms)
        if greedy.any():
            tokens = torch.where(greedy, _argmax(processed, high)[rows], tokens)
        return tokens

    def drawn_logprobs(self, tokens: Tensor) -> Tensor:
        """Log-probabilities of one token for each row in the distribution it is drawn from, float64."""
        processed, high = self._after_penalties()
        scores = processed.gather(1, tokens[:, None])[:, 0].double() - high[:, 0].double()
        weights = self._weights(processed, high)
        scores /= torch.tensor([spec.params.temperature for spec in self._specs], dtype=torch.float64)
        is_left = weights.gather(1, tokens[:, None])[:, 0] > 0
        return torch.where(is_left, scores - log(_totals(weights)), -torch.inf)

    def logprobs(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities of ``tokens`` before temperature, float64."""
        return self._raw[rows, tokens].double() - self._log_total[rows]

    def tops(self, rows: Tensor, tokens: Tensor) -> list[list[TokenLogprob] | None]:
        """For each draw the token and the most likely ones, where asked for."""
        raw, log_total = self._raw.numpy(), self._log_total.tolist()
        counts = [self._num_top(self._specs[row].params.logprobs) for row in rows.tolist()]
        return [
            None if count is None else _top(raw[row], log_total[row], token, count)
            for row, token, count in zip(rows.tolist(), tokens.tolist(), counts, strict=True)
        ]

    def _num_top(self, wanted: int | None) -> int | None:
        """How many most likely tokens are reported: -1 asks for all."""
        return None if wanted is None else self._vocab_size if wanted < 0 else min(wanted, self._vocab_size)

    def _after_penalties(self) -> tuple[Tensor, Tensor]:
        """Logits after masks, bias, a user's own code and penalties, and the maximum of each row."""
        if self._hooks is None and not any(_is_processed(spec) for spec in self._specs):
            return self._raw, self._high
        processed = self._processed.copy_(self._raw)
        for row, spec in zip(processed, self._specs, strict=True):
            _mask_and_bias(row, spec, self._vocab_size)
        if self._hooks is not None:
            self._replace(processed, self._hooks.before_penalties)
        for row, spec in zip(processed, self._specs, strict=True):
            if spec.params.has_penalties:
                _penalise(row, spec)
        return processed, self._finite_maxima(processed, PROCESSED)

    def _weights(self, processed: Tensor, high: Tensor) -> Tensor:
        """Unnormalised probabilities after temperature, a user's own code and filters."""
        hooks = self._hooks
        if hooks is None or not hooks.is_after_temperature:
            return _weights(processed, high, self._specs, self._work)
        scores = torch.sub(processed, high).div_(_divisors(self._specs))
        for row, spec in zip(scores, self._specs, strict=True):
            if spec.params.temperature > 0:
                keep_min_p(row, spec.params.min_p)
        self._replace(scores, hooks.after_temperature)
        rest = [
            spec if not spec.params.temperature else replace(spec, params=_after_min_p(spec.params))
            for spec in self._specs
        ]
        return _weights(scores, self._finite_maxima(scores, PROCESSED), rest, self._work)

    def _replace(self, logits: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        """Let ``change`` see ``logits`` without their padding; what it returns becomes the logits."""
        given = logits[:, : self._vocab_size]
        changed = change(given)
        if changed is not given:
            if changed.shape != given.shape:
                shapes = f"got {tuple(given.shape)}, returned {tuple(changed.shape)}"
                raise ShapeError(f"logits processor: {shapes}, expected the same shape")
            given.copy_(changed)

    def _finite_maxima(self, logits: Tensor, name: str) -> Tensor:
        """The maximum of each row, ``[R, 1]``; raises ``FloatingPointError`` where it is not finite."""
        high = logits.amax(-1, keepdim=True)
        broken = torch.nonzero(~torch.isfinite(high[:, 0]))
        if len(broken):
            raise broken_row(name, int(self._rows[int(broken[0])]))
        return high


def _is_processed(spec: RowSpec) -> bool:
    return spec.mask is not None or bool(spec.params.logit_bias) or spec.params.has_penalties


def _mask_and_bias(row: Tensor, spec: RowSpec, vocab_size: int) -> None:
    """Apply a row's mask, then its bias, in place."""
    if spec.mask is not None:
        row[:vocab_size].numpy()[~unpacked(spec.mask, vocab_size)] = -np.inf
    if spec.params.logit_bias:
        bias = spec.params.logit_bias
        row[torch.tensor(list(bias))] += torch.tensor(list(bias.values()), dtype=torch.float32)


def _after_min_p(params: SamplingParams) -> SamplingParams:
    """What is left to do after temperature and min-p."""
    return replace(params, temperature=1.0, min_p=0.0)


def _divisors(specs: Sequence[RowSpec]) -> Tensor:
    """``[R, 1]`` float32: temperatures; not zero."""
    limits = torch.finfo(torch.float32)
    temperatures = [min(max(spec.params.temperature, limits.tiny), limits.max) for spec in specs]
    return torch.tensor(temperatures, dtype=torch.float32).unsqueeze(-1)


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
    """Unnormalised probabilities after temperature and filters; the most likely token weighs 1.

    Args:
        logits: ``[R, V]`` after penalties; not modified.
        high: ``[R, 1]``: the maximum of each row.
        specs: ``[R]``; rows of temperature 0 are not filtered: nothing is drawn from them.
        work: ``[R, V]``; overwritten, and returned.
    """
    weights = exp_(torch.sub(logits, high, out=work).div_(_divisors(specs)))
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
    """The drawn token, then the ``count`` most likely, ties by id."""
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
