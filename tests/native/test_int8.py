"""Codes of 8 bits: every level's kernels give numpy's bytes, for any shape, number of rows and threads."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
import torch

from tests.kernel_levels import num_threads
from tests.native import int8_oracle as oracle
from tests.native.int8_calls import expected, int8_case
from treeshare.native import int8, library
from treeshare.native.int8 import Int8Format, PackedWeights

CODES = library.int8_codes() if library._load().library else ()

pytestmark = pytest.mark.skipif(not CODES, reason="no kernels, or none for this CPU")

INPUTS = (1, 6, 64, 90, 192, 576, 640)
"""Whole units of 64 and not; 6 and 90 are twice an odd number."""

OUTPUTS = (1, 15, 16, 17, 33, 100)

MAX_ROWS = 70


@pytest.fixture(params=CODES, ids=str)
def code(request, monkeypatch):
    """The kernels of each level that this CPU has, by their code."""
    kernels = {}
    for name, arguments in library._INT8_ARGUMENTS.items():
        function = getattr(library._load().library, f"treeshare_{name}_{request.param}")
        function.argtypes, function.restype = arguments, None
        kernels[f"treeshare_{name}"] = function
    monkeypatch.setattr(int8, "int8_kernels", lambda: type("Kernels", (), kernels))
    return request.param


def draws_of(*seed):
    return np.random.default_rng(seed)


def numbers(*shape, seed=0):
    """Rows of different sizes, and in each some numbers that are much larger than others."""
    draws = draws_of(seed, *shape)
    x = draws.standard_normal(shape) * 10.0 ** draws.integers(-6, 6, (shape[0], 1))
    return (x * np.where(draws.random(shape) < 0.02, 50, 1)).astype(np.float32)


def widths(num_inputs):
    """Powers of two that divide it: the largest, the largest up to 64, none."""
    largest = num_inputs & -num_inputs
    return sorted({1, min(64, largest), largest})


def formats(num_inputs):
    groups = [None, 64, 128] if num_inputs > 64 else [None]
    return [
        Int8Format(num_inputs=num_inputs, group=group, transform=width)
        for group, width in itertools.product(groups, widths(num_inputs))
    ]


_KEPT = {}
"""What the oracle found: the same numbers are asked for with each level's kernels."""


def of_oracle(x, format):
    key = x.tobytes(), x.shape, format
    if key not in _KEPT:
        _KEPT[key] = oracle.quantize(x, group=format.group, transform_width=format.transform)
        for array in _KEPT[key]:
            array.setflags(write=False)
    return _KEPT[key]


def codes_and_scales(rows, format):
    return format.codes_of(rows).numpy(), format.scales_of(rows).numpy()


def assert_same_bits(got, expected):
    """But for a NaN's own."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    same = (got.view(f"u{got.itemsize}") == expected.view(f"u{expected.itemsize}")) | (
        (got != got) & (expected != expected)
    )
    assert same.all(), f"{(~same).sum()} of {same.size} differ"


@pytest.mark.parametrize("num_inputs", INPUTS)
def test_rows_become_codes(num_inputs, code):
    x = numbers(37, num_inputs)
    x[3] = 0
    x[4] = np.float32(2.0**-120)
    x[5, 0], x[6, -1], x[7, num_inputs // 2] = np.nan, np.inf, -np.inf
    x[8] = 3.0e38  # their sum is infinite
    x[9] = np.float32(2.0**-99)
    for format in formats(num_inputs):
        with np.errstate(over="ignore", invalid="ignore"):
            codes, scales = of_oracle(x, format)
        got = codes_and_scales(format.quantize(torch.from_numpy(x)), format)
        np.testing.assert_array_equal(got[0], codes)
        assert_same_bits(got[1], scales)
        assert not codes[3:5].any()
        assert not scales[3].any()
        assert np.abs(codes[0]).max() == 127
        assert np.isnan(scales[5:8]).any(1).all()


def test_bfloat16_rows_and_rows_of_a_wider_buffer(code):
    x = torch.from_numpy(numbers(9, 200)).to(torch.bfloat16)
    for format in formats(90):
        part = x[:, 7:97]
        codes, scales = of_oracle(part.float().numpy(), format)
        got = codes_and_scales(format.quantize(part), format)
        np.testing.assert_array_equal(got[0], codes)
        assert_same_bits(got[1], scales)


@pytest.mark.parametrize("num_inputs", INPUTS)
def test_weights_are_packed(num_inputs, code):
    """Their layout, which all levels and files share; padding is zero."""
    for num_outputs, format in itertools.product(OUTPUTS, formats(num_inputs)):
        weight = numbers(num_outputs, num_inputs, seed=1)
        packed = PackedWeights.empty(format, num_outputs)
        for memory in (packed.codes, packed.scales, packed.sums):
            memory.fill_(77)
        rows = format.quantize(torch.from_numpy(weight))
        for first in range(0, num_outputs, 16):
            packed.pack(rows[first : first + 16], first)
        codes, scales = of_oracle(weight, format)
        outputs = -(-num_outputs // 16) * 16
        padded = np.pad(codes, ((0, outputs - num_outputs), (0, 0)))
        by_panel = padded.reshape(-1, 16, format.padded // 4, 4).transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(packed.codes.numpy(), by_panel)
        assert_same_bits(packed.scales.numpy()[:, :num_outputs], scales.T)
        assert not packed.scales[:, num_outputs:].any()
        group = format.group or format.padded
        starts = range(0, format.padded, group)
        sums = [padded[:, first : first + group].sum(1, dtype=np.int32) for first in starts]
        np.testing.assert_array_equal(packed.sums.numpy(), sums)
        again = PackedWeights.of(torch.from_numpy(weight), format)
        assert torch.equal(again.codes, packed.codes)


def test_a_table_gives_its_rows_back(code):
    for num_inputs in INPUTS:
        table = numbers(40, num_inputs, seed=2)
        ids = torch.tensor([39, 0, 17, 17, 16])
        for format in formats(num_inputs):
            packed = PackedWeights.of(torch.from_numpy(table), format)
            expected = oracle.numbers_of(of_oracle(table, format), num_inputs, format.transform)[ids]
            got = packed.lookup(ids, torch.empty(len(ids), num_inputs))
            assert_same_bits(got.numpy(), expected)
            halves = packed.lookup(ids, torch.empty(len(ids), num_inputs, dtype=torch.bfloat16))
            assert_same_bits(halves.view(torch.int16).numpy(), oracle.to_bfloat16(expected).view(np.int16))
            budget = np.abs(table[ids]).max(1, keepdims=True) * format.transform * (0.5 / 127 + 1e-6)
            assert (np.abs(expected - table[ids]) <= budget).all()


def layer(num_inputs, num_outputs, format, *, bias=True, seed=0):
    """Packed weights, and what the oracle multiplies by."""
    weight = numbers(num_outputs, num_inputs, seed=seed)
    offset = numbers(1, num_outputs, seed=3)[0] if bias else None
    packed = PackedWeights.of(
        torch.from_numpy(weight), format, None if offset is None else torch.from_numpy(offset)
    )
    return packed, of_oracle(weight, format), offset


def check_linear(num_inputs, num_outputs, format, num_rows, *, bias=True):
    """Float32 and bfloat16 results are the oracle's."""
    packed, weights, offset = layer(num_inputs, num_outputs, format, bias=bias)
    x = numbers(num_rows, num_inputs, seed=4)
    x[num_rows // 2] = 0
    rows = format.quantize(torch.from_numpy(x))
    expected = oracle.multiply(of_oracle(x, format), weights, offset)
    assert_same_bits(packed.multiply(rows, torch.empty(num_rows, num_outputs)).numpy(), expected)
    halves = packed.multiply(rows, torch.empty(num_rows, num_outputs, dtype=torch.bfloat16))
    assert_same_bits(halves.view(torch.int16).numpy(), oracle.to_bfloat16(expected).view(np.int16))


@pytest.mark.parametrize("num_inputs", INPUTS)
def test_products_are_numpys(num_inputs, code):
    draws = draws_of(num_inputs)
    for num_outputs, format in itertools.product(OUTPUTS, formats(num_inputs)):
        check_linear(
            num_inputs, num_outputs, format, int(draws.integers(1, MAX_ROWS + 1)), bias=num_outputs % 2 == 1
        )


def test_any_number_of_rows_from_either_end(code):
    """A row's bytes do not depend on how many there are, or where it stands."""
    for format in formats(192)[:4]:
        packed, weights, offset = layer(192, 100, format)
        x = numbers(MAX_ROWS, 192, seed=4)
        rows = format.quantize(torch.from_numpy(x))
        whole = oracle.multiply(of_oracle(x, format), weights, offset)
        for num_rows in range(1, MAX_ROWS + 1):
            out = torch.empty(num_rows, 100)
            assert_same_bits(packed.multiply(rows[:num_rows], out).numpy(), whole[:num_rows])
            assert_same_bits(packed.multiply(rows[-num_rows:], out).numpy(), whole[-num_rows:])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(threads, code):
    with num_threads(threads):
        for num_outputs in (1, 33, 100):
            for format in formats(192)[:4]:
                check_linear(192, num_outputs, format, 13)


def test_rows_in_several_stretches(code):
    format = Int8Format(num_inputs=64, transform=64)
    check_linear(64, 33, format, 530)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("group", [None, 64])
def test_extreme_codes(sign, group, code):
    """No product or sum of two saturates: codes of 127 and -127 alone."""
    format = Int8Format(num_inputs=1536, group=group)
    x, weight = np.full((9, 1536), -1, np.float32), np.full((20, 1536), sign, np.float32)
    weight[7] *= np.where(np.arange(1536) % 2, 1, -1)
    packed = PackedWeights.of(torch.from_numpy(weight), format)
    got = packed.multiply(format.quantize(torch.from_numpy(x)), torch.empty(9, 20)).numpy()
    expected = oracle.multiply(of_oracle(x, format), of_oracle(weight, format))
    assert_same_bits(got, expected)
    np.testing.assert_allclose(got[:, 0], -sign * 1536, rtol=1e-6)
    assert not got[:, 7].any()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite(broken, code):
    """Its results are NaN, all of them, and its neighbours' are what they were."""
    for format in formats(192):
        packed, *_ = layer(192, 33, format)
        x = torch.from_numpy(numbers(30, 192, seed=4))
        expected = packed.multiply(format.quantize(x), torch.empty(30, 33))
        x[13, 100] = broken
        got = packed.multiply(format.quantize(x), torch.empty(30, 33))
        others = torch.arange(30) != 13
        assert got[13].isnan().all()
        assert torch.equal(got[others], expected[others])


def test_nothing_beside_the_result_is_touched(code):
    for format in formats(90):
        packed, weights, offset = layer(90, 33, format)
        x = numbers(5, 90, seed=4)
        memory = torch.full((7, 70), 5.0)
        packed.multiply(format.quantize(torch.from_numpy(x)), memory[1:6, 3:36])
        expected = np.full((7, 70), 5, np.float32)
        expected[1:6, 3:36] = oracle.multiply(of_oracle(x, format), weights, offset)
        assert_same_bits(memory.numpy(), expected)


def test_no_rows(code):
    format = Int8Format(num_inputs=64)
    packed, *_ = layer(64, 16, format)
    assert packed.multiply(format.quantize(torch.empty(0, 64)), torch.empty(0, 16)).shape == (0, 16)


def test_a_struct_of_no_group_means_the_whole_row():
    format = Int8Format(num_inputs=100)
    assert (format.padded, format.num_groups, format.row_floats) == (128, 1, 48)
    assert Int8Format(num_inputs=100, group=64).row_floats == 48
    assert isinstance(ctypes.sizeof(format.struct()), int)


FAULTS = {
    "a scale of another group": lambda packed: packed.scales.copy_(packed.scales.roll(1, 0)),
    "a scale of another output": lambda packed: packed.scales.copy_(packed.scales.roll(1, 1)),
    "a sum too large": lambda packed: packed.sums.add_(1),
    "words in another order": lambda packed: packed.codes.copy_(packed.codes.roll(1, 1)),
    "a code": lambda packed: packed.codes[0, 3, 2].add_(1),
}
"""What is wrong in a layer's memory."""

NEEDS_SUMS = ("avx512vnni",)
"""Codes that multiply rows as numbers without a sign, and correct their sums."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_weights_is_seen(fault, code):
    format = Int8Format(num_inputs=192, group=64, transform=64)
    packed, weights, offset = layer(192, 33, format)
    x = numbers(5, 192, seed=4)
    FAULTS[fault](packed)
    got = packed.multiply(format.quantize(torch.from_numpy(x)), torch.empty(5, 33)).numpy()
    is_same = (got == oracle.multiply(of_oracle(x, format), weights, offset)).all()
    assert is_same == (fault == "a sum too large" and code not in NEEDS_SUMS)


def test_a_block_that_is_not_transformed_is_seen(code):
    x = numbers(3, 192)
    format = Int8Format(num_inputs=192, transform=64)
    codes = codes_and_scales(format.quantize(torch.from_numpy(x)), format)[0]
    wrong = np.concatenate([oracle.transform(x[:, :128], 64), x[:, 128:]], 1)
    assert (codes != oracle.quantize(wrong)[0]).any()
    assert (codes != oracle.quantize(oracle.transform(x, 32))[0]).any()


def test_rows_times_panels_for_attention(code):
    """All that ``driver.cpp`` calls on other machines, products without scales among it."""
    got, wanted = int8_case().run(library._load().library, code), expected()
    assert got.keys() == wanted.keys()
    assert any(name.startswith("products") for name in wanted)
    for name, values in wanted.items():
        assert_same_bits(got[name], values)
