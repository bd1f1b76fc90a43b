"""Log-probabilities of what was drawn, and of the likeliest tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.sampling.rows import PARAMS, UNIT, draw_all, peaked_logits, plain_spec, specs_for
from treeshare.sampling import SamplingParams
from treeshare.sampling.masks import mask_without
from treeshare.sampling.sampler import RowSpec, drawn_logprobs, sample
from treeshare.sampling.softmax import BLOCK

pytestmark = pytest.mark.usefixtures("each_way_of_drawing")


def logprob_bound(row):
    """The largest error that float32 can make in the log of the sum of exponentials.

    Each difference from the maximum is rounded once (an error of its size times the unit), each exponential
    is within two units in the last place, sums of ``BLOCK`` float32 numbers add ``BLOCK - 1`` roundings.
    """
    below = row.double() - row.double().amax()
    below = below[torch.isfinite(below)]
    chances = below.exp() / below.exp().sum()
    relative = UNIT * float((chances * -below).sum() + 4 + BLOCK - 1)
    return relative / (1 - relative) + 2**-50 * float(row.double().amax().abs() + 10)


def test_greedy_after_penalties_and_bans():
    logits = torch.tensor([[3.0, 2.9, 2.8, -1.0]]).repeat(4, 1)
    specs = [
        RowSpec(SamplingParams(temperature=0), generated=[0], prompt=[1]),
        RowSpec(SamplingParams(temperature=0, presence_penalty=1), generated=[0], prompt=[1]),
        RowSpec(SamplingParams(temperature=0, repetition_penalty=2), generated=[0], prompt=[1]),
        RowSpec(SamplingParams(temperature=0), generated=[], prompt=[], mask=mask_without(4, {0, 1})),
    ]
    sampled, _, _ = draw_all(logits, specs)
    assert sampled.token_ids.tolist() == [0, 1, 2, 2]
    raw = logits[0].double().log_softmax(-1).numpy()
    assert np.abs(sampled.logprobs - raw[[0, 1, 2, 2]]).max() <= logprob_bound(logits[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [0, -500, 3e4])
def test_logprobs_are_of_the_raw_distribution(dtype, shift):
    logits = peaked_logits(9, 5000, dtype=dtype) + shift
    specs = specs_for(9, 5000, **PARAMS["everything"], logprobs=7)
    sampled, rows, _ = draw_all(logits, specs, 4)
    for row, token, logprob, top in zip(rows, sampled.token_ids, sampled.logprobs, sampled.top, strict=True):
        raw = logits[row].double().log_softmax(-1).numpy()
        bound = logprob_bound(logits[row])
        assert abs(logprob - raw[token]) <= bound
        order = np.argsort(-raw, stable=True)[:7]
        assert top[0].token_id == token
        assert top[0].logprob == logprob
        assert top[0].rank == (raw > raw[token]).sum() + 1
        assert [entry.token_id for entry in top[1:]] == [i for i in order if i != token]
        assert [order[entry.rank - 1] for entry in top[1:]] == [entry.token_id for entry in top[1:]]
        assert max(abs(entry.logprob - raw[entry.token_id]) for entry in top) <= bound


@pytest.mark.parametrize(
    ("count", "num_entries"), [(None, None), (0, 1), (1, 1), (3, 3), (151, 151), (200, 151)]
)
def test_top_logprobs_are_as_many_as_asked_for(count, num_entries):
    logits = peaked_logits(1, 151)
    (top,) = draw_all(logits, [plain_spec(temperature=0, logprobs=count)])[0].top
    if num_entries is None:
        assert top is None
        return
    assert len(top) == num_entries
    assert [entry.rank for entry in top] == list(range(1, num_entries + 1))
    assert len({entry.token_id for entry in top} & set(range(151))) == num_entries


def test_top_logprobs_of_ties():
    logits = torch.tensor([[1.0, 5.0, 5.0, 0.0, 5.0]])
    draws = sample(logits, [plain_spec(logprobs=2)], np.array([0, 0]), np.array([0.001, 0.9]))
    assert [[(entry.token_id, entry.rank) for entry in top] for top in draws.top] == [
        [(0, 4), (1, 1), (2, 2)],
        [(4, 1), (1, 1), (2, 2)],
    ]


@pytest.mark.parametrize("name", [name for name in PARAMS if PARAMS[name].get("temperature", 1) > 0])
def test_logprobs_of_what_is_drawn_from(name):
    """Of every token in turn: they sum to 1, and tokens are drawn as often as they say."""
    params = SamplingParams(**PARAMS[name])
    logits = 3 * torch.randn(1, 500, generator=torch.Generator().manual_seed(5))
    spec = RowSpec(params, [3, 4, 4], [5])
    logprobs = drawn_logprobs(logits.expand(500, -1), [spec] * 500, np.arange(500))
    assert np.exp(logprobs).sum() == pytest.approx(1, rel=500 * UNIT)
    draws = (np.arange(4000) + 0.5) / 4000
    tokens = sample(logits, [spec], np.zeros(4000, np.int64), draws).token_ids
    shares = np.bincount(tokens, minlength=500) / 4000
    assert np.abs(shares - np.exp(logprobs)).max() < 2 / 4000
    if name in ("cold", "hot"):
        exact = (logits[0].double() / params.temperature).log_softmax(-1).numpy()
        assert np.abs(logprobs - exact).max() < 16 * UNIT * np.abs(exact).max()
