"""Rows of logits with their parameters, and what a slow float64 twin makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from treeshare.sampling import SamplingParams
from treeshare.sampling.masks import mask_without
from treeshare.sampling.sampler import RowSpec, sample

BORDER = 1e-4
"""A uniform relatively this close to a border of the CDF may fall on either side: weights are float32."""

NEAR = 1e-5
"""A token relatively this close to a filter's border may be in or out, unless it ties exactly."""

UNIT = 2.0**-24
"""Unit roundoff of float32."""

PARAMS = {
    "plain": {},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 1.7},
    "top-k 1": {"top_k": 1},
    "top-k": {"top_k": 12},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.1},
    "all filters": {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": -0.7},
    "repetition": {"repetition_penalty": 1.4},
    "bias": {"logit_bias": {3: 12.5, 77: -100, 150: 4.0, 20: 100}},
    "bias and filters": {
        "logit_bias": {3: 9, 77: -9, 30: 8.5},
        "temperature": 0.7,
        "top_p": 0.9,
        "min_p": 0.01,
    },
    "everything": {
        "temperature": 1.3,
        "logit_bias": {5: 3.5, 9: -20, 150: 6},
        "presence_penalty": -0.4,
        "frequency_penalty": 0.3,
        "repetition_penalty": 0.8,
        "top_k": 100,
        "top_p": 0.95,
        "min_p": 0.01,
    },
}


@dataclass(frozen=True)
class Oracle:
    """One row's processed distribution; ``sure`` is False where float32 may choose other tokens."""

    chances: np.ndarray
    sure: bool


def oracle(logits, spec):
    """Mask, bias, penalties, temperature, min-p, top-k, top-p, one after the other in float64."""
    params = spec.params
    scores = logits.double().numpy().copy()
    if spec.mask is not None:
        words = spec.mask.tolist()
        banned = [token for token in range(len(scores)) if not words[token // 32] >> token % 32 & 1]
        scores[banned] = -np.inf
    for token, bias in (params.logit_bias or {}).items():
        scores[token] += bias
    for token in {*spec.prompt, *spec.generated}:
        penalty = params.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token in set(spec.generated):
        scores[token] -= (
            params.frequency_penalty * list(spec.generated).count(token) + params.presence_penalty
        )
    below = scores - scores.max()
    weights = np.exp(below / params.temperature)
    sure = True
    if params.min_p > 0:
        border = params.temperature * np.log(params.min_p)
        sure &= params.min_p == 1 or not is_near(below, border, exact=True)
        weights[below < border] = 0
    if 0 < params.top_k < len(weights):
        border = np.sort(below)[-params.top_k]
        weights[below < border] = 0
    if params.top_p < 1:
        order = sorted(range(len(weights)), key=lambda token: (weights[token] == 0, -below[token], token))
        mass = weights[order].cumsum() / weights.sum()
        num_kept = int((mass < params.top_p).sum()) + 1
        sure &= not is_near(mass, params.top_p, exact=True)
        weights[order[num_kept:]] = 0
    return Oracle(weights / weights.sum(), bool(sure))


def is_near(values, border, *, exact=False):
    """Whether a value lies so close to ``border`` that float32 may not know; equal ones do not count."""
    near = np.abs(values - border) <= NEAR * np.abs(border)
    return bool((near & ((values != border) | exact)).any())


def peaked_logits(num_rows, vocab_size, seed=0, dtype=torch.float32):
    """Logits like a model's: some twenty likely tokens above a wide floor."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, vocab_size, generator=generator) * 2
    likely = torch.randint(0, vocab_size, (num_rows, 20), generator=generator)
    logits.scatter_add_(1, likely, torch.rand(num_rows, 20, generator=generator) * 10)
    return logits.to(dtype)


def specs_for(num_rows, vocab_size, **values):
    """Row i has its own prompt, own tokens generated, and own bans."""
    numbers = np.random.default_rng(num_rows)
    return [
        RowSpec(
            SamplingParams(**values),
            generated=numbers.integers(0, vocab_size, 30).tolist() * 2,
            prompt=numbers.integers(0, vocab_size, 50).tolist(),
            mask=mask_without(vocab_size, numbers.integers(0, vocab_size, i % 3).tolist()) if i % 3 else None,
        )
        for i in range(num_rows)
    ]


def plain_spec(**values):
    return RowSpec(SamplingParams(**values), generated=(), prompt=())


def draw_all(logits, specs, draws_per_row=1, seed=0):
    rows = np.repeat(np.arange(len(specs)), draws_per_row)
    numbers = np.random.default_rng(seed).random(len(rows))
    return sample(logits, specs, rows, numbers), rows, numbers
