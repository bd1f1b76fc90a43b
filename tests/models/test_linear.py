"""Linear layers by the compiled kernel: as good as torch's, and a row's bits are its own."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import nn

from tests.kernel_levels import LEVELS, WIDENING_LEVELS, num_threads, using_kernels
from tests.models.tiny import CONFIGS, make_model
from tests.turns import slow_but
from treeshare.models import ModelAdapter
from treeshare.models.binding import bind_model
from treeshare.models.linear import KernelLinear, bind_linears, has_kernel, unbind_linears, weights_of
from treeshare.native import kernels

pytestmark = pytest.mark.usefixtures("each_kernel_level")

SHAPES = [(2, 1), (6, 16), (34, 47), (90, 48), (576, 49), (1536, 100), (64, 960)]
"""Inputs and outputs: whole panels of 48 outputs and blocks of 32 inputs, and not."""

NUM_ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 23, 24, 200]
DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def layer(num_inputs, num_outputs, bias, dtype=torch.bfloat16):
    linear = nn.Linear(num_inputs, num_outputs, bias=bias)
    draws = torch.Generator().manual_seed(num_inputs * num_outputs)
    for parameter in linear.parameters():
        nn.init.normal_(parameter, generator=draws)
    return linear.to(dtype).requires_grad_(False)


def rows_for(linear, num_rows):
    draws = torch.Generator().manual_seed(num_rows)
    return torch.randn(num_rows, linear.in_features, generator=draws).to(linear.weight.dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), SHAPES)
def test_as_good_as_torch(num_inputs, num_outputs, bias, dtype):
    """As torch's matmul of many rows: one of few may sum otherwise, and a few rows' errors say little."""
    linear = layer(num_inputs, num_outputs, bias, dtype)
    rows = rows_for(linear, 200)
    found = {num_rows: KernelLinear(linear)(rows[:num_rows]) for num_rows in NUM_ROWS}
    own = linear(rows)
    exact = linear.double()(rows.double())
    budget = 2 * (own.double() - exact).abs().max() + exact.abs() * torch.finfo(dtype).eps
    for num_rows, got in found.items():
        assert got.shape == exact[:num_rows].shape
        assert torch.all((got.double() - exact[:num_rows]).abs() <= budget[:num_rows]), num_rows


@pytest.mark.parametrize(("num_inputs", "num_outputs"), SHAPES)
def test_a_rows_bits_do_not_depend_on_the_number_of_rows(num_inputs, num_outputs, dtype):
    """Rows whose products nearly cancel, so that another order of summation would show."""
    linear = layer(num_inputs, num_outputs, bias=True, dtype=dtype)
    x = rows_for(linear, 200)
    third = num_inputs // 3
    x[:, third : 2 * third] = -4096 * x[:, :third]
    x[:, :third] *= 4096
    linear.weight[:, third : 2 * third] = linear.weight[:, :third]
    forward = KernelLinear(linear)
    whole = forward(x)
    for num_rows in (1, 2, 3, 5, 8, 13, 64, 199):
        assert torch.equal(forward(x[:num_rows]), whole[:num_rows])
        assert torch.equal(forward(x[-num_rows:]), whole[-num_rows:])
        with num_threads(1):
            assert torch.equal(forward(x[:num_rows]), whole[:num_rows])


@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(90, 49), (1600, 100)])
def test_levels_have_the_same_bits(num_inputs, num_outputs, dtype):
    """Running sums of products, rounded once with the addition; bfloat16 on levels without dot products."""
    linear = layer(num_inputs, num_outputs, bias=True, dtype=dtype)
    x, results = rows_for(linear, 23), []
    for level in LEVELS if dtype == torch.float32 else WIDENING_LEVELS:
        with using_kernels(level):
            results.append(KernelLinear(linear)(x))
    assert all(torch.equal(result, results[0]) for result in results)


def test_writes_nothing_beside_its_output(dtype):
    linear = layer(34, 49, bias=False, dtype=dtype)
    x = rows_for(linear, 9)
    memory = torch.full((11, 49), 7.0, dtype=dtype)
    weights = weights_of(linear)
    kernels(dtype).treeshare_linear(ctypes.byref(weights), x.data_ptr(), memory[1].data_ptr(), 9)
    assert torch.all(memory[0] == 7)
    assert torch.all(memory[-1] == 7)
    assert torch.equal(memory[1:-1], KernelLinear(linear)(x))


@pytest.mark.parametrize("shape", [(), (3,), (1, 5), (2, 3, 1), (0,)])
def test_any_leading_shape(shape):
    linear = layer(34, 49, bias=True)
    x = rows_for(linear, 64)[: torch.tensor(shape).prod().int() if shape else 1].reshape(*shape, 34)
    assert KernelLinear(linear)(x).shape == linear(x).shape


def test_rows_that_lie_apart():
    linear = layer(34, 49, bias=False)
    x = rows_for(linear, 64)
    assert torch.equal(KernelLinear(linear)(x[::3]), KernelLinear(linear)(x[::3].contiguous()))


def test_what_the_kernel_does_not_compute():
    """An odd number of pairs, another dtype, weights that lie apart: torch's own, also after a change."""
    assert not has_kernel(layer(7, 5, bias=False))
    assert has_kernel(layer(7, 5, bias=False, dtype=torch.float32))
    assert not has_kernel(layer(8, 5, bias=False, dtype=torch.float16))
    assert not has_kernel(layer(8, 5, bias=False, dtype=torch.float64))
    linear = layer(8, 5, bias=False)
    x = rows_for(linear, 4)
    assert bind_linears([linear]) == [linear]
    with pytest.raises(RuntimeError, match="dtype"):
        linear(x.float())
    linear.float()
    with pytest.raises(RuntimeError, match="dtype"):
        linear(x)
    assert torch.equal(linear(x.float()), nn.functional.linear(x.float(), linear.weight))
    linear.bfloat16()
    linear.weight.data = linear.weight.data.t().contiguous().t()
    assert torch.equal(linear(x), nn.functional.linear(x, linear.weight))
    unbind_linears([linear])
    assert "forward" not in vars(linear)


@pytest.mark.parametrize("architecture", slow_but(("llama", "gpt2"), sorted(CONFIGS)))
def test_no_row_is_padded(architecture, dtype):
    """Nowhere: GPT-2's layers, which keep their weights the other way round, have one too."""
    model = make_model(CONFIGS[architecture](), dtype)
    fused = bind_model(model).fused
    adapter = ModelAdapter(model, fused, max_rows=64)
    assert 37 in adapter.widths
    assert 37 in adapter.head_widths
