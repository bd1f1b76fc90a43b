"""Min-p, top-k and top-p, in that order, on one row.

Min-p and top-k are borders on logits, so they mean the same at every temperature: weights of different logits
may round to the same float32. Top-p adds up weights; where they tie it goes by logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from treeshare.sampling.softmax import BLOCK, log_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.sampling.params import SamplingParams


def has_filters(params: SamplingParams) -> bool:
    """Whether any of the three leaves tokens out."""
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


def min_p_margin(params: SamplingParams) -> float:
    """How far below the largest logit one may be before min-p leaves it out, at most 0; ``-inf`` for any."""
    return params.temperature * log_of(params.min_p) if params.min_p > 0 else -np.inf


def filter_weights(weights: Tensor, logits: Tensor, params: SamplingParams) -> None:
    """Set the weights of tokens left out to zero, in place.

    Top-k keeps all tokens tied with the k-th. Top-p keeps the smallest set of most likely tokens whose mass
    reaches ``top_p`` of what is left; of tokens with equal weights those with higher logits, of those with
    equal logits those with lower ids.

    Args:
        weights: ``[V]`` float32, ``V`` a multiple of ``BLOCK``: unnormalised probabilities; the largest is 1.
        logits: ``[V]`` float32: what the weights were made of, before temperature; not modified.
        params: Which filters.
    """
    row: NDArray[np.float32] = weights.numpy()
    scores: NDArray[np.float32] = logits.numpy()
    floor = np.float32(-np.inf)
    if params.min_p > 0:
        floor = at_least(float(scores.max()) + min_p_margin(params))
    if 0 < params.top_k < len(row):
        floor = max(floor, kth_largest(scores, params.top_k))
    if floor > -np.inf:
        row *= scores >= floor
    if params.top_p < 1:
        _keep_top_p(row, scores, params.top_p)


def keep_min_p(scores: Tensor, min_p: float) -> None:
    """Set logits after temperature that min-p leaves out to minus infinity, in place; the highest is 0."""
    if min_p > 0:
        row: NDArray[np.float32] = scores.numpy()
        row[row < at_least(log_of(min_p))] = -np.inf


def at_least(border: float) -> np.float32:
    """The smallest float32 that is not below ``border``."""
    with np.errstate(over="ignore"):
        rounded = np.float32(border)
        return np.nextafter(rounded, np.float32(np.inf)) if float(rounded) < border else rounded


def kth_largest(row: NDArray[np.float32], k: int) -> np.float32:
    """The k-th largest value of a row whose length is a multiple of ``BLOCK``."""
    block_highs = row.reshape(-1, BLOCK).max(-1)
    if k <= len(block_highs):  # k blocks hold a value of at least ``floor``: no smaller one is the k-th
        floor = np.partition(block_highs, -k)[-k]
        row = row.compress(row >= floor)
    return np.float32(np.partition(row, -k)[-k])


def _keep_top_p(row: NDArray[np.float32], scores: NDArray[np.float32], top_p: float) -> None:
    """Set all weights but those that top-p keeps to zero, in place."""
    total = float(row.sum(dtype=np.float64))
    wanted = top_p * total
    floor = (total - wanted) / (2 * len(row))  # tokens below hold at most half of the mass left out
    ordered = np.sort(row.compress(row > floor))[::-1]
    num_kept = min(int(ordered.cumsum(dtype=np.float64).searchsorted(wanted)) + 1, len(ordered))
    border = ordered[num_kept - 1]
    row *= row >= border
    if num_kept < len(ordered) and ordered[num_kept] == border:
        tied = np.flatnonzero(row == border)
        num_tied = num_kept - np.count_nonzero(ordered > border)
        row[tied[np.argsort(-scores[tied], kind="stable")[num_tied:]]] = 0
