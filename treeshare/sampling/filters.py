"""Top-k, top-p and min-p, in that order, on one row of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from treeshare.sampling.inverse_cdf import BLOCK

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.sampling.params import SamplingParams


def has_filters(params: SamplingParams) -> bool:
    """Whether any of the three leaves tokens out."""
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


def filter_weights(weights: Tensor, params: SamplingParams) -> None:
    """Set the weights of tokens left out to zero, in place.

    Top-k keeps all tokens tied with the k-th. Top-p keeps the smallest set of likeliest tokens whose mass
    reaches ``top_p``, of tied tokens those with the lowest ids.

    Args:
        weights: ``[V]`` float32, ``V`` a multiple of ``BLOCK``: unnormalised probabilities; the largest is 1.
        params: Which filters.
    """
    row: NDArray[np.float32] = weights.numpy()
    if 0 < params.top_k < len(row):
        row *= row >= kth_largest(row, params.top_k)
    if params.top_p < 1:
        _keep_top_p(row, params.top_p)
    if params.min_p > 0:
        row *= row >= np.float32(params.min_p)


def kth_largest(row: NDArray[np.float32], k: int) -> np.float32:
    """The k-th largest value of a row whose length is a multiple of ``BLOCK``."""
    block_highs = row.reshape(-1, BLOCK).max(-1)
    if k <= len(block_highs):  # k blocks hold a value of at least ``floor``: no smaller one is the k-th
        floor = np.partition(block_highs, -k)[-k]
        row = row.compress(row >= floor)
    return np.float32(np.partition(row, -k)[-k])


def _keep_top_p(row: NDArray[np.float32], top_p: float) -> None:
    """Set all weights but those that top-p keeps to zero, in place."""
    total = float(row.sum(dtype=np.float64))
    wanted = top_p * total
    floor = (total - wanted) / (2 * len(row))  # tokens below hold at most half of the mass left out
    ordered = np.sort(row.compress(row > floor))[::-1]
    num_kept = min(int(ordered.cumsum(dtype=np.float64).searchsorted(wanted)) + 1, len(ordered))
    border = ordered[num_kept - 1]
    row *= row >= border
    if num_kept < len(ordered) and ordered[num_kept] == border:
        num_tied = num_kept - np.count_nonzero(ordered > border)
        row[np.flatnonzero(row == border)[num_tied:]] = 0
