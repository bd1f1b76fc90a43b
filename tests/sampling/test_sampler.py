"""The sampler against a slow float64 twin; its bits in any company."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_levels import LEVELS, using_kernels
from treeshare.errors import ShapeError
from treeshare.sampling import SamplingParams
from treeshare.sampling.filters import filter_weights, kth_largest
from treeshare.sampling.inverse_cdf import BLOCK
from treeshare.sampling.sampler import RowSpec, drawn_logprobs, sample

BORDER = 1e-4
"""A uniform relatively this close to a border of the CDF may fall on either side: weights are float32."""

NEAR = 1e-5
"""A token relatively this close to a filter's border may be in or out, unless it ties exactly."""

UNIT = 2.0**-24
"""Unit roundoff of float32."""


@pytest.fixture(params=[*LEVELS, "none"], scope="module", autouse=True)
def path(request):
    """Every way of drawing rows without penalties: compiled kernels, and torch."""
    with using_kernels(request.param):
        yield


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
    "everything": {
        "temperature": 1.3,
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
    """Penalties, bans, temperature, top-k, top-p, min-p, one after the other in float64."""
    params = spec.params
    scores = logits.double().numpy().copy()
    for token in {*spec.prompt, *spec.generated}:
        penalty = params.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    for token in set(spec.generated):
        scores[token] -= (
            params.frequency_penalty * list(spec.generated).count(token) + params.presence_penalty
        )
    scores[list(spec.banned)] = -np.inf
    weights = np.exp((scores - scores.max()) / params.temperature)
    sure = True
    if 0 < params.top_k < len(weights):
        border = np.sort(weights)[-params.top_k]
        sure &= not is_near(weights, border)
        weights = np.where(weights >= border, weights, 0)
    if params.top_p < 1:
        order = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
        mass = weights[order].cumsum() / weights.sum()
        num_kept = int((mass < params.top_p).sum()) + 1
        sure &= not is_near(mass, params.top_p, exact=True)
        sure &= not is_near(weights, weights[order[num_kept - 1]])
        weights[order[num_kept:]] = 0
    if params.min_p > 0:
        sure &= params.min_p == 1 or not is_near(weights, params.min_p, exact=True)
        weights = np.where(weights >= params.min_p, weights, 0)
    return Oracle(weights / weights.sum(), bool(sure))


def is_near(values, border, *, exact=False):
    """Whether a value lies so close to ``border`` that float32 may not know; equal ones do not count."""
    near = np.abs(values - border) <= NEAR * border
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
            banned=frozenset(numbers.integers(0, vocab_size, i % 3).tolist()),
        )
        for i in range(num_rows)
    ]


def plain_spec(**values):
    return RowSpec(SamplingParams(**values), generated=(), prompt=())


def draw_all(logits, specs, draws_per_row=1, seed=0):
    rows = np.repeat(np.arange(len(specs)), draws_per_row)
    numbers = np.random.default_rng(seed).random(len(rows))
    return sample(logits, specs, rows, numbers), rows, numbers


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


STEPS = st.lists(st.sampled_from([0, 1, 2, 3, 8, 64, 4096]), min_size=1, max_size=40)


@given(STEPS, st.integers(1, 2), st.floats(0.01, 1), st.integers(0, 50), st.sampled_from([0, 0.01, 0.5, 1]))
def test_filters_with_many_ties(steps, num_blocks, top_p, top_k, min_p):
    """Weights are small multiples of one power of two, so that all sums are exact: no border is unsure."""
    values = np.zeros(num_blocks * BLOCK)
    values[np.random.default_rng(len(steps)).permutation(len(values))[: len(steps)]] = steps
    values[7] = 4096
    values /= 4096
    expected = values.copy()
    if top_k > 0:
        expected[expected < np.sort(expected)[-top_k]] = 0
    if top_p < 1:
        order = sorted(range(len(values)), key=lambda token: (-expected[token], token))
        cumulative = expected[order].cumsum()
        expected[order[int((cumulative < top_p * cumulative[-1]).sum()) + 1 :]] = 0
    expected[expected < np.float32(min_p)] = 0
    weights = torch.from_numpy(values).float()
    filter_weights(weights, SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p))
    assert weights.tolist() == expected.tolist()


@given(STEPS, st.integers(1, 3), st.data())
def test_kth_largest(steps, num_blocks, data):
    row = np.full(num_blocks * BLOCK, -np.inf, np.float32)
    row[np.random.default_rng(len(steps)).permutation(len(row))[: len(steps)]] = steps
    k = data.draw(st.integers(1, len(row)))
    assert kth_largest(row, k) == np.sort(row)[-k]


@pytest.mark.parametrize("top_p", [1 - 1e-7, 0.999999, 1e-12])
def test_extreme_top_p(top_p):
    """The whole mass but for rounding, or the likeliest token alone."""
    logits = peaked_logits(1, 1024)[0]
    weights = (logits - logits.amax()).exp()
    kept = weights.clone()
    filter_weights(kept, SamplingParams(top_p=top_p))
    chances, total = kept.double(), weights.double().sum()
    rounding = len(weights) * 2**-53
    assert chances.sum() / total >= top_p * (1 - rounding)
    assert (chances.sum() - chances[chances > 0].amin()) / total <= top_p + rounding


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


def test_greedy_after_penalties_and_bans():
    logits = torch.tensor([[3.0, 2.9, 2.8, -1.0]]).repeat(4, 1)
    specs = [
        RowSpec(SamplingParams(temperature=0), generated=[0], prompt=[1]),
        RowSpec(SamplingParams(temperature=0, presence_penalty=1), generated=[0], prompt=[1]),
        RowSpec(SamplingParams(temperature=0, repetition_penalty=2), generated=[0], prompt=[1]),
        RowSpec(SamplingParams(temperature=0), generated=[], prompt=[], banned=frozenset({0, 1})),
    ]
    sampled, _, _ = draw_all(logits, specs)
    assert sampled.token_ids.tolist() == [0, 1, 2, 2]
    raw = logits[0].double().log_softmax(-1).numpy()
    assert np.abs(sampled.logprobs - raw[[0, 1, 2, 2]]).max() <= logprob_bound(logits[0])


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


MIXED = [*PARAMS.values(), {"temperature": 0}, {"logprobs": 3}, {"temperature": 0, "repetition_penalty": 1.2}]


@pytest.fixture(params=[1, 2, 3])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [151, 1000, 49152, 50257])
def test_bits_do_not_depend_on_company(vocab_size, dtype, num_threads):
    """Alone on one thread; then in batches of every size, at other places, beside other rows."""
    kinds = len(MIXED)
    logits = peaked_logits(kinds, vocab_size, dtype=dtype)
    specs = [specs_for(kinds, vocab_size, **values)[i] for i, values in enumerate(MIXED)]
    numbers = np.random.default_rng(5).random((kinds, 3))
    torch.set_num_threads(1)
    alone = [outcome(logits[i : i + 1], specs[i : i + 1], [0], numbers[i : i + 1])[0] for i in range(kinds)]
    torch.set_num_threads(num_threads)
    generator = np.random.default_rng(num_threads)
    for size in [1, 2, 3, 15, 16, 17, 31, 33, 64] if vocab_size > 1000 else range(1, 65):
        chosen = generator.integers(0, kinds, size)
        batch = outcome(logits[chosen], [specs[i] for i in chosen], range(size), numbers[chosen])
        assert batch == [alone[i] for i in chosen]


def outcome(logits, specs, rows, numbers):
    """All that was drawn for each row, the log-probabilities to the last bit."""
    num_draws = numbers.shape[1]
    sampled = sample(logits, specs, np.repeat(np.array(rows), num_draws), numbers.ravel())
    per_draw = list(zip(sampled.token_ids.tolist(), sampled.logprobs.tolist(), sampled.top, strict=True))
    return [per_draw[i : i + num_draws] for i in range(0, len(per_draw), num_draws)]


def test_rows_without_draws_change_nothing():
    logits, specs = peaked_logits(50, 1000), specs_for(50, 1000)
    everyone, _, numbers = draw_all(logits, specs)
    some = np.array([3, 16, 17, 49])
    sampled = sample(logits, specs, some, numbers[some])
    assert sampled.token_ids.tolist() == everyone.token_ids[some].tolist()
    assert sampled.logprobs.tolist() == everyone.logprobs[some].tolist()
    nobody = sample(logits, specs, some[:0], numbers[:0])
    assert (len(nobody.token_ids), len(nobody.logprobs), nobody.top) == (0, 0, [])


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
    spec = RowSpec(params, generated=sorted(likely), prompt=[], banned=likely)
    sampled, _, _ = draw_all(logits, [spec] * 3, 500)
    assert not likely & set(sampled.token_ids.tolist())


@pytest.mark.parametrize("row", [0, 7, 15, 16, 37])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_broken_logits(row, value, temperature):
    logits = peaked_logits(40, 300)
    logits[row, slice(None) if value == "-inf" else 123] = float(value)
    message = f"logits: row {row} of a step holds NaN, infinity or no finite value"
    with pytest.raises(FloatingPointError, match=f"^{message}$"):
        draw_all(logits, [plain_spec(temperature=temperature)] * 40)


@pytest.mark.parametrize("temperature", [0, 1])
def test_everything_banned(temperature):
    spec = RowSpec(SamplingParams(temperature=temperature), [], [], banned=frozenset(range(151)))
    specs = [*[plain_spec()] * 20, spec]
    message = "logits after penalties and bans: row 20 of a step holds NaN, infinity or no finite value"
    with pytest.raises(FloatingPointError, match=f"^{message}$"):
        draw_all(peaked_logits(21, 151), specs)


def test_lengths_must_fit():
    message = "sample: 3 rows and 2 specs, (1,) rows of draws and (1,) uniforms"
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        sample(peaked_logits(3, 151), [plain_spec()] * 2, np.zeros(1, np.int64), np.zeros(1))
    message = "sample: 2 rows and 2 specs, (1,) rows of draws and (2,) uniforms"
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        sample(peaked_logits(2, 151), [plain_spec()] * 2, np.zeros(1, np.int64), np.zeros(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [256, 300])
def test_inputs_are_not_modified(dtype, vocab_size):
    logits = peaked_logits(20, vocab_size, dtype=dtype)
    specs = specs_for(20, vocab_size, **PARAMS["everything"], logprobs=3)
    rows, numbers = np.arange(20), np.random.default_rng(0).random(20)
    before = (logits.clone(), [list(spec.generated) for spec in specs], rows.copy(), numbers.copy())
    sample(logits, specs, rows, numbers)
    assert torch.equal(logits, before[0])
    assert [spec.generated for spec in specs] == before[1]
    assert (rows == before[2]).all()
    assert (numbers == before[3]).all()


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
