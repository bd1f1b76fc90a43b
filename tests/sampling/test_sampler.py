"""The sampler's contract: a row's bits in any company, inputs left alone, refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from tests.sampling.rows import PARAMS, draw_all, peaked_logits, plain_spec, specs_for
from treeshare.errors import ShapeError
from treeshare.sampling import SamplingParams
from treeshare.sampling.masks import mask_of
from treeshare.sampling.sampler import RowSpec, sample

pytestmark = pytest.mark.usefixtures("each_way_of_drawing")


MIXED = [*PARAMS.values(), {"temperature": 0}, {"logprobs": 3}, {"temperature": 0, "repetition_penalty": 1.2}]


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.slow), 3])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


SIZES = [1, 2, 3, 15, 16, 17, 31, 33, 64]
"""Of batches: at and beside the borders of those that are drawn at once."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [151, 1000, pytest.param(49152, marks=pytest.mark.slow), 50257])
def test_bits_do_not_depend_on_company(vocab_size, dtype, num_threads):
    check_company(vocab_size, dtype, num_threads, SIZES if vocab_size <= 1000 else SIZES[:6])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [151, 1000, 50257])
def test_bits_do_not_depend_on_company_of_any_size(vocab_size, dtype, num_threads):
    check_company(vocab_size, dtype, num_threads, range(1, 65))


def check_company(vocab_size, dtype, num_threads, sizes):
    """Alone on one thread; then in batches of several sizes, at other places, beside other rows."""
    kinds = len(MIXED)
    logits = peaked_logits(kinds, vocab_size, dtype=dtype)
    specs = [specs_for(kinds, vocab_size, **values)[i] for i, values in enumerate(MIXED)]
    numbers = np.random.default_rng(5).random((kinds, 3))
    torch.set_num_threads(1)
    alone = [outcome(logits[i : i + 1], specs[i : i + 1], [0], numbers[i : i + 1])[0] for i in range(kinds)]
    torch.set_num_threads(num_threads)
    generator = np.random.default_rng(num_threads)
    for size in sizes:
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


@pytest.mark.parametrize("row", [0, 7, 15, 16, 37])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_broken_logits(row, value, temperature):
    logits = peaked_logits(40, 300)
    logits[row, slice(None) if value == "-inf" else 123] = float(value)
    message = f"logits: row {row} of a step has a NaN, an infinity or no finite value"
    with pytest.raises(FloatingPointError, match=f"^{message}$"):
        draw_all(logits, [plain_spec(temperature=temperature)] * 40)


@pytest.mark.parametrize("temperature", [0, 1])
def test_everything_banned(temperature):
    spec = RowSpec(SamplingParams(temperature=temperature), [], [], mask=mask_of(151, ()))
    specs = [*[plain_spec()] * 20, spec]
    message = "logits after masks and penalties: row 20 of a step has a NaN, an infinity or no finite value"
    with pytest.raises(FloatingPointError, match=f"^{message}$"):
        draw_all(peaked_logits(21, 151), specs)


def test_lengths_must_fit():
    message = "sample: 3 rows and 2 specs, (1,) rows of draws and (1,) uniforms"
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        sample(peaked_logits(3, 151), [plain_spec()] * 2, np.zeros(1, np.int64), np.zeros(1))
    message = "sample: 2 rows and 2 specs, (1,) rows of draws and (2,) uniforms"
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        sample(peaked_logits(2, 151), [plain_spec()] * 2, np.zeros(1, np.int64), np.zeros(2))
