"""Masks: sets of tokens as bits, the rules that make them, and what the samplers do with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_levels import LEVELS, using_kernels
from tests.sampling.rows import peaked_logits
from treeshare.errors import ConfigError
from treeshare.sampling import SamplingParams
from treeshare.sampling.device import sample_on_device
from treeshare.sampling.masks import TokenRules, allows_any, mask_of, mask_without, num_words, unpacked
from treeshare.sampling.sampler import RowSpec, drawn_logprobs, sample

SIZES = st.sampled_from([1, 31, 32, 33, 64, 151])


@given(SIZES, st.data())
def test_masks_are_sets(size, data):
    ids = data.draw(st.sets(st.integers(0, size - 1)))
    mask = mask_of(size, ids)
    assert mask.shape == (num_words(size),)
    assert set(np.flatnonzero(unpacked(mask, size)).tolist()) == ids
    assert allows_any(mask, size) == bool(ids)
    others = mask_without(size, ids)
    assert set(np.flatnonzero(unpacked(others, size)).tolist()) == set(range(size)) - ids
    assert allows_any(others, size) == (len(ids) < size)
    both = mask_without(size, ids, mask)
    assert not allows_any(both, size)


BAD_WORDS = [[5], [1, 2, 3], [7, 7]]


@pytest.mark.parametrize(
    ("generated", "banned"),
    [
        ([], {5}),
        ([1, 2], {5, 3}),
        ([9, 1, 2], {5, 3}),
        ([2, 1], {5}),
        ([2], {5}),
        ([7], {5, 7}),
        ([7, 7], {5, 7}),
        ([1, 2, 3], {5}),
    ],
)
def test_bad_words(generated, banned):
    mask = TokenRules(40, bad_words=BAD_WORDS).mask(generated)
    assert set(np.flatnonzero(~unpacked(mask, 40)).tolist()) == banned


def test_rules_together():
    rules = TokenRules(40, allowed=[1, 2, 3, 5], banned_early=[1], min_tokens=2, bad_words=BAD_WORDS)

    def left(generated, grammar=None):
        mask = rules.mask(generated, None if grammar is None else mask_of(40, grammar))
        return np.flatnonzero(unpacked(mask, 40)).tolist()

    assert left([]) == [2, 3]
    assert left([2, 2]) == [1, 2, 3]
    assert left([1, 2]) == [1, 2]
    assert left([2, 2], [1, 4, 39]) == [1]
    message = (
        r"^structured_outputs, allowed_token_ids, bad_words and min_tokens: together they leave no token "
        r"to draw {}; relax one of them$"
    )
    with pytest.raises(ConfigError, match=message.format("as the first one")):
        left([], [1, 4, 39])
    with pytest.raises(ConfigError, match=message.format("after 2 tokens")):
        left([1, 2], [3])
    assert TokenRules(40).mask([1]) is None


FILTERED = [
    {},
    {"temperature": 0},
    {"temperature": 0.6, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
    {"logit_bias": {3: 30, 8: -100}},
    {"logit_bias": {3: 2.5}, "temperature": 0, "top_p": 0.5},
]


def rows(vocab_size, dtype):
    logits = peaked_logits(24, vocab_size, dtype=dtype)
    numbers = np.random.default_rng(1)
    masks = [
        None,
        mask_of(vocab_size, {3}),
        mask_of(vocab_size, {0, vocab_size - 1}),
        mask_of(vocab_size, set(numbers.integers(0, vocab_size, 40).tolist())),
        mask_without(vocab_size, set(numbers.integers(0, vocab_size, 40).tolist())),
        mask_without(vocab_size, set(logits[0].topk(30).indices.tolist())),
    ]
    return logits, [RowSpec(SamplingParams(**FILTERED[i % 5]), [], [], masks[i % 6]) for i in range(24)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [151, 1000, 4100])
@pytest.mark.parametrize("level", [*LEVELS, "device"])
def test_all_samplers_agree(level, vocab_size, dtype):
    """Tokens of the kernels and of a device are torch's, but at borders; a masked one never comes."""
    logits, specs = rows(vocab_size, dtype)
    draw_rows = np.repeat(np.arange(24), 60)
    numbers = np.random.default_rng(2).random(len(draw_rows))
    with using_kernels("none"):
        expected = sample(logits, specs, draw_rows, numbers)
    if level == "device":
        with using_kernels("none"):
            found = sample_on_device(logits, specs, draw_rows, numbers)
        assert found.token_ids.tolist() == expected.token_ids.tolist()
    else:
        with using_kernels(level):
            found = sample(logits, specs, draw_rows, numbers)
        assert np.count_nonzero(found.token_ids != expected.token_ids) <= 2
    for row, token in zip(draw_rows, found.token_ids, strict=True):
        mask = specs[row].mask
        assert mask is None or unpacked(mask, vocab_size)[token]
    same = found.token_ids == expected.token_ids
    bound = 1e-4 if dtype == torch.bfloat16 else 1e-5
    assert np.abs(found.logprobs - expected.logprobs)[same].max() <= bound


def test_probabilities_are_those_of_the_model():
    """What is reported is the model's own; what importance weights take is what tokens were drawn from."""
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    spec = RowSpec(SamplingParams(logit_bias={1: 1.0}), [], [], mask_of(4, {0, 1}))
    for level in (*LEVELS[:1], "none"):
        with using_kernels(level):
            drawn = sample(logits, [spec], np.zeros(1, np.int64), np.array([0.99]))
        assert drawn.token_ids.tolist() == [1]
        assert drawn.logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[0, 1]), abs=1e-6)
    own = drawn_logprobs(logits, [spec], np.array([1]))[0]
    assert own == pytest.approx(float(torch.tensor([1.0, 3.0]).log_softmax(-1)[1]), abs=1e-6)
    assert drawn_logprobs(logits, [spec], np.array([3]))[0] == -np.inf


@pytest.mark.parametrize("level", [*LEVELS[:1], "none", "device"])
def test_a_mask_without_tokens_is_told(level):
    logits, specs = rows(151, torch.float32)
    specs[7] = RowSpec(SamplingParams(), [], [], mask_of(151, ()))
    draw = sample_on_device if level == "device" else sample
    with (
        using_kernels("none" if level == "device" else level),
        pytest.raises(FloatingPointError, match=r"^logits after masks and penalties: row"),
    ):
        draw(logits, specs, np.arange(24), np.zeros(24))
