"""Top-k, top-p and min-p, in that order, on one row of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from treeshare.sampling.params import SamplingParams

_FIRST_GUESS = 512
"""Tokens looked at first for top-p; eight times as many each time they do not hold the mass."""


def has_filters(params: SamplingParams) -> bool:
    """Whether any of the three leaves tokens out."""
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


def filter_weights(weights: Tensor, params: SamplingParams) -> None:
    """Set the weights of tokens left out to zero, in place.

    Top-k keeps all tokens tied with the k-th. Top-p keeps the smallest set of likeliest tokens whose mass
    reaches ``top_p``, of tied tokens those with the lowest ids.

    Args:
        weights: ``[V]`` float32, unnormalised probabilities; the largest is 1.
        params: Which filters.
    """
    if 0 < params.top_k < len(weights):
        weights[weights < weights.topk(params.top_k).values[-1]] = 0
    if params.top_p < 1:
        _keep_top_p(weights, params.top_p)
    if params.min_p > 0:
        weights[weights < params.min_p * weights.amax()] = 0


def _keep_top_p(weights: Tensor, top_p: float) -> None:
    wanted = top_p * weights.view(-1, 256).sum(-1).double().sum().item()
    count = _FIRST_GUESS
    while True:
        count = min(count, len(weights))
        ordered = weights.topk(count).values
        mass = ordered.double().cumsum(0)
        if count == len(weights) or mass[-1] >= wanted:
            break
        count *= 8
    num_kept = min(int((mass < wanted).sum()) + 1, count)
    border = ordered[num_kept - 1]
    num_tied = num_kept - int((ordered > border).sum())
    tied = torch.nonzero(weights == border)[:, 0]
    weights[weights < border] = 0
    weights[tied[num_tied:]] = 0
