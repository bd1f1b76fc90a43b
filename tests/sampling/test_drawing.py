"""Which tokens are drawn: those of the float64 twin's distribution."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from tests.sampling.rows import BORDER, PARAMS, draw_all, oracle, peaked_logits, plain_spec, specs_for
from treeshare.sampling import SamplingParams
from treeshare.sampling.masks import mask_without
from treeshare.sampling.sampler import RowSpec, sample

pytestmark = pytest.mark.usefixtures("each_way_of_drawing")


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(151, torch.float32), (1000, torch.bfloat16), (4096, torch.float32)]
)
def test_tokens_are_the_inverse_cdf(name, vocab_size, dtype):
    num_rows, draws_per_row = 20, 50
    logits = peaked_logits(num_rows, vocab_size, dtype=dtype)
    specs = specs_for(num_rows, vocab_size, **PARAMS[name])
    sampled, rows, numbers = draw_all(logits, specs, draws_per_row)
    oracles = [oracle(row, spec) for row, spec in zip(logits, specs, strict=True)]
    num_checked = 0
    for token, row, u in zip(sampled.token_ids, rows, numbers, strict=True):
        cdf = oracles[row].chances.cumsum()
        if oracles[row].sure and np.abs(cdf / u - 1).min() > BORDER:
            assert token == np.searchsorted(cdf, u * cdf[-1], side="right")
            num_checked += 1
    assert num_checked > 0.7 * len(rows)


@pytest.mark.parametrize("name", PARAMS)
def test_tokens_follow_the_distribution(name):
    num_draws, vocab_size = 20_000, 300
    logits = peaked_logits(1, vocab_size, seed=3)
    specs = specs_for(1, vocab_size, **PARAMS[name])
    sampled, _, _ = draw_all(logits, specs, num_draws, seed=17)
    expected = oracle(logits[0], specs[0])
    assert expected.sure
    counts = np.bincount(sampled.token_ids, minlength=vocab_size)
    assert (counts[expected.chances == 0] == 0).all()
    is_rare = num_draws * expected.chances < 5
    observed = [*counts[~is_rare], counts[is_rare].sum()]
    wanted = [*expected.chances[~is_rare], expected.chances[is_rare].sum()]
    kept = [i for i, chance in enumerate(wanted) if chance > 0]
    if len(kept) > 1:
        frequencies = np.array(wanted)[kept] * num_draws
        frequencies *= num_draws / frequencies.sum()
        assert scipy.stats.chisquare(np.array(observed)[kept], frequencies).pvalue > 1e-3


@pytest.mark.parametrize("vocab_size", [151, 256, 1000, 49152])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_is_the_lowest_of_the_likeliest(vocab_size, dtype):
    logits = peaked_logits(40, vocab_size, dtype=dtype)
    numbers = np.random.default_rng(0)
    for row in logits[::2]:
        row[torch.from_numpy(numbers.integers(0, vocab_size, 9))] = row.amax() + 1
    specs = [plain_spec(temperature=0, top_k=3, top_p=0.5, min_p=0.5)] * len(logits)
    sampled, _, _ = draw_all(logits, specs, 3)
    expected = np.repeat(np.argmax(logits.float().numpy(), -1), 3)
    assert sampled.token_ids.tolist() == expected.tolist()


@pytest.mark.parametrize("u", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("name", PARAMS)
def test_only_tokens_with_weight(u, name):
    """The ends of the unit interval, where rounding could reach past the first or the last token."""
    logits = peaked_logits(30, 1000)
    logits[:, :300] = -torch.inf
    logits[:, 600:] = -torch.inf
    specs = [plain_spec(**PARAMS[name])] * len(logits)
    tokens = sample(logits, specs, np.arange(30), np.full(30, u)).token_ids
    for row, spec, token in zip(logits, specs, tokens, strict=True):
        expected = oracle(row, spec)
        has_weight = np.flatnonzero(expected.chances)
        if u == 0 and expected.sure:
            assert token == has_weight[0]
        assert logits[0, token] > -torch.inf
        assert not expected.sure or token in has_weight


def test_uniforms_at_every_border():
    """Exact weights: a uniform on a border takes the next token, one just below it the token before."""
    logits = torch.full((1, 600), -torch.inf)
    logits[0, [5, 300, 301, 599]] = 0.0
    borders = np.array([0, 0.25, 0.5, 0.75])
    below = np.nextafter([0.25, 0.5, 0.75, 1], 0)
    for numbers in (borders, below):
        drawn = sample(logits, [plain_spec()], np.zeros(4, np.int64), numbers)
        assert drawn.token_ids.tolist() == [5, 300, 301, 599]


@pytest.mark.parametrize("temperature", [1e-320, 1e-40, 1e-5])
def test_nearly_zero_temperature(temperature):
    logits = peaked_logits(20, 1000)
    sampled, _, _ = draw_all(logits, [plain_spec(temperature=temperature)] * 20)
    assert sampled.token_ids.tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [1e300, 10**30, 10**300])
def test_immense_temperature(temperature):
    """Every token that may come is as likely as any other."""
    logits = peaked_logits(1, 151)
    logits[0, 100:] = -torch.inf
    numbers = (np.arange(100) + 0.5) / 100
    sampled = sample(logits, [plain_spec(temperature=temperature)], np.zeros(100, np.int64), numbers)
    assert sampled.token_ids.tolist() == list(range(100))


@pytest.mark.parametrize("temperature", [0, 1, 5])
def test_banned_tokens_never_come(temperature):
    logits = peaked_logits(1, 151).repeat(3, 1)
    likely = frozenset(logits[0].topk(20).indices.tolist())
    params = SamplingParams(temperature=temperature, repetition_penalty=0.5, frequency_penalty=-2)
    spec = RowSpec(params, generated=sorted(likely), prompt=[], mask=mask_without(151, likely))
    sampled, _, _ = draw_all(logits, [spec] * 3, 500)
    assert not likely & set(sampled.token_ids.tolist())
