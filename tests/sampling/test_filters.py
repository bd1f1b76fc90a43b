"""Min-p, top-k and top-p: which tokens each way of drawing keeps, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.examples import examples
from tests.kernel_levels import LEVELS, using_kernels
from tests.sampling.rows import NEAR, oracle, peaked_logits, plain_spec
from tests.turns import by_turns
from treeshare.sampling import SamplingParams
from treeshare.sampling.device import sample_on_device
from treeshare.sampling.filters import at_least, filter_weights, kth_largest
from treeshare.sampling.inverse_cdf import BLOCK
from treeshare.sampling.sampler import RowSpec, drawn_logprobs, sample

STEPS = st.lists(st.sampled_from([0, 1, 2, 3, 8, 64, 4096]), min_size=1, max_size=40)

DRAWS = 4096

DTYPES = [torch.float32, torch.bfloat16]

KERNELS = [*LEVELS[:1], "none"]


def kept_by(logits, params, sampler=sample, **spec):
    """The tokens that are drawn, over evenly spaced uniforms."""
    uniforms = (np.arange(DRAWS) + 0.5) / DRAWS
    specs = [RowSpec(params, spec.get("generated", []), spec.get("prompt", []))]
    drawn = sampler(logits[None], specs, np.zeros(DRAWS, np.int64), uniforms).token_ids
    return np.unique(drawn).tolist()


def kept_everywhere(logits, **values):
    """The tokens that each way of drawing keeps: kernels (all levels draw the same), torch, and others."""
    params = SamplingParams(**values)
    found = {}
    for level in KERNELS:
        with using_kernels(level):
            found[level] = kept_by(logits, params)
    general = SamplingParams(**values, logprobs=0)
    found["general"] = kept_by(logits, general)
    found["device"] = kept_by(logits, params, sample_on_device)
    tokens = np.arange(len(logits))
    specs = [plain_spec(**values)] * len(tokens)
    logprobs = drawn_logprobs(logits.expand(len(tokens), -1), specs, tokens)
    found["probabilities"] = np.flatnonzero(logprobs > np.log(0.5 / DRAWS)).tolist()
    return found


def ways(expected):
    return dict.fromkeys([*KERNELS, "general", "device", "probabilities"], expected)


@given(STEPS, st.integers(1, 2), st.floats(0.01, 1), st.integers(0, 50), st.sampled_from([0, 0.01, 0.5, 1]))
def test_filters_with_many_ties(steps, num_blocks, top_p, top_k, min_p):
    """Weights are small multiples of one power of two, so that all sums are exact: no border is unsure."""
    values = np.zeros(num_blocks * BLOCK)
    values[np.random.default_rng(len(steps)).permutation(len(values))[: len(steps)]] = steps
    values[7] = 4096
    values /= 4096
    with np.errstate(divide="ignore"):
        logits = np.log(values).astype(np.float32)
    expected = values.copy()
    if min_p > 0:
        expected[logits.astype(np.float64) < np.log(min_p)] = 0
    if top_k > 0:
        expected[expected < np.sort(expected)[-top_k]] = 0
    if top_p < 1:
        order = sorted(range(len(values)), key=lambda token: (-expected[token], token))
        cumulative = expected[order].cumsum()
        expected[order[int((cumulative < top_p * cumulative[-1]).sum()) + 1 :]] = 0
    weights = torch.from_numpy(values).float()
    filter_weights(weights, torch.from_numpy(logits), SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p))
    assert weights.tolist() == expected.tolist()


@given(STEPS, st.integers(1, 3), st.data())
def test_kth_largest(steps, num_blocks, data):
    row = np.full(num_blocks * BLOCK, -np.inf, np.float32)
    row[np.random.default_rng(len(steps)).permutation(len(row))[: len(steps)]] = steps
    k = data.draw(st.integers(1, len(row)))
    assert kth_largest(row, k) == np.sort(row)[-k]


@given(st.floats(allow_nan=False))
def test_at_least(border):
    rounded = at_least(border)
    assert float(rounded) >= border
    with np.errstate(over="ignore"):
        below = np.nextafter(rounded, np.float32(-np.inf))
    assert float(below) < border or rounded == -np.inf


@pytest.mark.parametrize("top_p", [1 - 1e-7, 0.999999, 1e-12])
def test_extreme_top_p(top_p):
    """The whole mass but for rounding, or the likeliest token alone."""
    logits = peaked_logits(1, 1024)[0]
    weights = (logits - logits.amax()).exp()
    kept = weights.clone()
    filter_weights(kept, logits, SamplingParams(top_p=top_p))
    chances, total = kept.double(), weights.double().sum()
    rounding = len(weights) * 2**-53
    assert chances.sum() / total >= top_p * (1 - rounding)
    assert (chances.sum() - chances[chances > 0].amin()) / total <= top_p + rounding


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"min_p": 0.6, "top_p": 0.5}, [0]),  # .4 of what min-p leaves, .7, is above a half
        ({"min_p": 0.6, "top_p": 0.6}, [0, 1]),
        ({"top_p": 0.5}, [0, 1]),
        ({"top_k": 3, "top_p": 0.75}, [0, 1]),  # .7 of .9
        ({"min_p": 0.4, "top_k": 2}, [0, 1]),
        ({"min_p": 0.6, "top_k": 3}, [0, 1]),
        ({"min_p": 0.45, "temperature": 2.0}, [0, 1, 2, 3]),  # at this temperature .1 is half as likely as .4
        ({"min_p": 0.45, "temperature": 0.5}, [0, 1]),
        ({"min_p": 1.0}, [0]),
    ],
)
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_order_of_filters(values, kept, order):
    """Chances .4, .3, .2 and .1; the others have none."""
    logits = torch.full((300,), -torch.inf)
    logits[order] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert kept_everywhere(logits, **values) == ways(sorted(order[token] for token in kept))


@pytest.mark.parametrize(
    ("dtype", "temperature", "filtered"),
    by_turns(
        DTYPES,
        [1e-6, 1.0, 1e3, 1e6, 1e8, 1e30, 1e38, 1e300],
        [({"top_k": 1}, 1), ({"top_k": 5}, 5), ({"top_k": 300}, 300), ({"min_p": 1.0}, 1)],
    ),
)
def test_filters_at_any_temperature(filtered, temperature, dtype):
    """Of weights that have all become the same the likeliest tokens are kept, not the first ones."""
    values, count = filtered
    logits = (torch.randperm(600, generator=torch.Generator().manual_seed(1)).float() / 4 - 90).to(dtype)
    logits[::2] = -torch.inf
    likeliest = logits.float().argsort(descending=True, stable=True)[:count]
    floor = logits[likeliest[-1]]
    expected = torch.nonzero((logits >= floor) & (logits > -torch.inf))[:, 0].tolist()
    found = kept_everywhere(logits, temperature=temperature, **values)
    if temperature >= 1e3:
        assert found == ways(expected)
    else:  # the others have no chance at this temperature, or hardly any
        assert all(kept and set(kept) <= set(expected) for kept in found.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1e8, 1e30, 1e300])
@pytest.mark.parametrize("count", [1, 7, 100])
def test_top_p_at_immense_temperatures(count, temperature, dtype):
    """Among tokens that have become equally likely those with higher logits come first, then lower ids."""
    logits = (torch.arange(400) % 40).float().to(dtype)
    logits[350:] = -torch.inf
    order = sorted(range(350), key=lambda token: (-float(logits[token]), token))
    found = kept_everywhere(logits, temperature=temperature, top_p=(count - 0.5) / 350)
    assert found == ways(sorted(order[:count]))


@pytest.mark.parametrize(
    "values", [{"top_k": 40}, {"top_k": 41}, {"top_k": 2**31 - 1}, {"top_p": 1.0}, {"min_p": 0.0}]
)
def test_filters_that_leave_nothing_out(values):
    logits = torch.linspace(-1, 1, 40)
    assert kept_everywhere(logits, **values) == ways(list(range(40)))


NUMBERS = st.sampled_from([-np.inf, -1e4, -3.0, -1.5, -1.0, -0.5, -0.0, 0.0, 0.1, 0.5, 1.0, 2.0, 7.0])


@examples(30)
@given(
    st.lists(NUMBERS, min_size=1, max_size=300).filter(lambda row: max(row) > -np.inf),
    st.sampled_from([1e-6, 0.1, 0.7, 1.0, 1.3, 10.0, 1e4, 1e8, 1e30]),
    st.sampled_from([0, 0, 1, 2, 5, 40, 299, 1000, 2**31 - 1]),
    st.sampled_from([1.0, 1e-9, 0.1, 0.37, 0.53, 0.951, 1 - 1e-4]),
    st.sampled_from([0.0, 1e-30, 0.011, 0.13, 0.47, 0.83, 1.0]),
    st.floats(0.8, 1.5),
)
def test_ways_of_drawing_keep_the_same_tokens(row, temperature, top_k, top_p, min_p, penalty):
    """With many ties and without; also behind a penalty, where the general way draws for all."""
    values = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    logits = torch.tensor(row, dtype=torch.float32)
    expected = oracle(logits, plain_spec(**values))
    assume(expected.sure)
    wanted = np.flatnonzero(expected.chances)
    certain = set(np.flatnonzero(expected.chances > 1.01 / DRAWS).tolist())
    found = kept_everywhere(logits, **values)
    for way, kept in found.items():
        assert certain <= set(kept) <= set(wanted.tolist()), way
    params = SamplingParams(**values, repetition_penalty=penalty)
    penalised = oracle(logits, RowSpec(params, [0], [len(row) - 1]))
    if penalised.sure and abs(penalty - 1) > NEAR:
        kept = kept_by(logits, params, generated=[0], prompt=[len(row) - 1])
        assert set(kept) <= set(np.flatnonzero(penalised.chances).tolist())
        assert set(np.flatnonzero(penalised.chances > 1.01 / DRAWS).tolist()) <= set(kept)
