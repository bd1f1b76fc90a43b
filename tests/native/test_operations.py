"""What the kernels compute row by row, against transformers' and torch's own code.

The same bits where only sums and exponentials may differ, else at most twice their rounding error.
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch.nn import functional
from transformers.activations import NewGELUActivation
from transformers.models.cohere.modeling_cohere import rotate_half as rotate_pairs
from transformers.models.llama.modeling_llama import LlamaRMSNorm, rotate_half

from tests.native.operations import place, run, run_operation
from treeshare.native import number_of, structs
from treeshare.native.int8 import Int8Format, PackedWeights

pytestmark = pytest.mark.usefixtures("each_kernel_level")

WIDTHS = [16, 90]
"""Whole vectors of sixteen, and not."""

EXACT = ("ROUND", "ROUND_INNER")


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=str)
def dtype(request):
    return request.param


def random(*shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed)).to(dtype)


def assert_as_good(got, eager, exact):
    """At most twice the error of eager code in the same dtype, plus one rounding of the result."""
    error = (got.double() - exact).abs()
    budget = 2 * (eager.double() - exact).abs().max() + exact.abs() * torch.finfo(got.dtype).eps
    assert torch.all(error <= budget)


@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("in_rows", [False, True])
def test_rms_norm(rows, width, in_rows, dtype):
    x, weight = random(rows, width, dtype=dtype), random(width, dtype=dtype)
    norm = LlamaRMSNorm(width, eps=1e-3).to(dtype)
    norm.weight.data = weight
    got = run_operation("RMS_NORM", x, flags=EXACT, number=1e-3, weight=weight, in_rows=in_rows)
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()
    assert_as_good(got, norm(x).detach(), exact)
    plus_one = run_operation("RMS_NORM", x, flags=("ROUND", "PLUS_ONE"), number=1e-3, weight=weight)
    eager = (
        x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-3) * (1 + weight.float())
    ).to(dtype)
    assert_as_good(plus_one, eager, exact / weight.double() * (1 + weight.double()))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("has_weights", [False, True])
def test_layer_norm(groups, width, has_weights, dtype):
    x = random(50, groups * width, dtype=dtype) + 3
    weights = (
        {"weight": random(width, dtype=dtype), "bias": random(width, dtype=dtype, seed=1)}
        if has_weights
        else {}
    )
    got = run_operation("LAYER_NORM", x, groups=groups, number=1e-3, **weights)

    def own(numbers, **parameters):
        return functional.layer_norm(numbers.view(50, groups, width), (width,), **parameters, eps=1e-3).view(
            50, -1
        )

    exact = own(x.double(), **{name: weight.double() for name, weight in weights.items()})
    assert_as_good(got, own(x, **weights), exact)


@pytest.mark.parametrize("head_dim", [8, 64, 90, 1040])
@pytest.mark.parametrize(("kind", "turned"), [("ROTATE_HALVES", rotate_half), ("ROTATE_PAIRS", rotate_pairs)])
@pytest.mark.parametrize("is_rounded", [False, True])
def test_rotary_positions_to_the_bit(head_dim, kind, turned, is_rounded, dtype):
    rows, heads = 37, 5
    x = random(rows, heads * head_dim, dtype=dtype)
    cosine, sine = random(rows, head_dim, dtype=dtype), random(rows, head_dim, dtype=dtype, seed=1)
    by_head = x.view(rows, heads, head_dim)
    if not is_rounded:
        by_head = by_head.float()
    expected = (by_head * cosine[:, None] + turned(by_head) * sine[:, None]).to(dtype)
    flags = EXACT if is_rounded else ("ROUND",)
    got = run_operation(kind, x, cosine, sine, groups=heads, flags=flags)
    assert torch.equal(got.view(rows, heads, head_dim), expected)
    if kind == "ROTATE_HALVES":  # the other half turned, as nanochat's code has it
        flipped = (by_head * cosine[:, None] - turned(by_head) * sine[:, None]).to(dtype)
        assert torch.equal(
            run_operation(kind, x, cosine, sine, groups=heads, flags=(*flags, "FLIP")).view_as(flipped),
            flipped,
        )


FUNCTIONS = {
    "SILU": functional.silu,
    "SIGMOID": torch.sigmoid,
    "GELU": functional.gelu,
    "GELU_TANH": lambda x: functional.gelu(x, approximate="tanh"),
    "GELU_NEW": NewGELUActivation(),
    "RELU": torch.relu,
    "SQUARE": torch.square,
    "CUBE": lambda x: x.pow(3),
    "TANH": torch.tanh,
    "EXPM1": torch.expm1,
    "NEGATE": torch.neg,
    "COPY": lambda x: x,
}


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0, 1e30])
@pytest.mark.parametrize("is_gated", [False, True])
def test_functions(kind, scale, is_gated, dtype):
    x, other = random(50, 90, dtype=dtype) * scale, random(50, 90, dtype=dtype, seed=1)
    function = FUNCTIONS[kind]
    own, exact = function(x), function(x.double())
    got = run_operation(kind, x, other if is_gated else None, flags=EXACT)
    if is_gated:
        own, exact = own * other, exact * other.double()
    finite = torch.isfinite(own)
    assert torch.equal(torch.isfinite(got), finite)
    if finite.any():
        assert_as_good(got[finite], own[finite], exact[finite])
    if kind in ("RELU", "SQUARE", "NEGATE", "COPY"):
        assert torch.equal(got[finite], own[finite])


PAIRS = {
    "ADD": torch.add,
    "SUBTRACT": torch.sub,
    "MULTIPLY": torch.mul,
    "MINIMUM": torch.minimum,
    "MAXIMUM": torch.maximum,
    "GREATER": lambda a, b: (a > b).to(a.dtype),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_pairs_to_the_bit(kind, dtype):
    """With another row, a weight for each column, and a number."""
    a, b, weight = random(50, 90, dtype=dtype), random(50, 90, dtype=dtype, seed=1), random(90, dtype=dtype)
    assert torch.equal(run_operation(kind, a, b), PAIRS[kind](a, b))
    assert torch.equal(run_operation(kind, a, weight=weight), PAIRS[kind](a, weight.expand_as(a)))
    number = torch.tensor(0.3, dtype=torch.float32)
    assert torch.equal(run_operation(kind, a, number=0.3), PAIRS[kind](a.float(), number).to(dtype))


def test_selection(dtype):
    a, b, c = (random(50, 90, dtype=dtype, seed=seed) for seed in range(3))
    assert torch.equal(run_operation("SELECT", (a > 0).to(dtype), b, c), torch.where(a > 0, b, c))


@pytest.mark.parametrize("kind", ["GELU", "TANH", "EXPM1", "SILU"])
def test_not_a_number_stays_one(kind, dtype):
    x = random(1, 32, dtype=dtype)
    x[0, 3] = torch.nan
    assert torch.equal(run_operation(kind, x).isnan(), x.isnan())


@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("num_inputs", [64, 90])
@pytest.mark.parametrize("group", [None, 64])
@pytest.mark.parametrize("in_rows", [False, True])
def test_a_linear_layer_in_codes(rows, num_inputs, group, in_rows, dtype):
    """As part of a layer's program: the bytes of the kernels that are called one after the other."""
    x, weight = random(rows, num_inputs, dtype=dtype), random(50, num_inputs, dtype=dtype)
    format = Int8Format(num_inputs=num_inputs, group=group, transform=num_inputs & -num_inputs)
    packed = PackedWeights.of(weight, format, random(50, dtype=dtype))
    expected = [
        packed.multiply(format.quantize(x), torch.empty(rows, 50, dtype=d)) for d in (dtype, torch.float32)
    ]
    layer = packed.struct()
    codes = torch.full((rows, format.row_floats + 48), torch.nan)  # in a wider buffer, not at its beginning
    outs = [torch.zeros(rows, 60, dtype=d) for d in (dtype, torch.float32)]
    own, none = place(number_of("ROW_BUFFER")), place(number_of("NO_BUFFER"))

    def operation(kind, a, out, width=0):
        last = (0.0, structs.Linear(), ctypes.addressof(layer))
        return structs.Operation(number_of(kind), 0, 1, width, a, none, none, out, *last)

    steps = [operation("COPY", place(0), own, num_inputs)] if in_rows else []
    steps += [
        operation("QUANTIZE", own if in_rows else place(0), place(1, 16)),
        operation("LINEAR_INT8", place(1, 16), place(2, 5)),
        operation("LINEAR_INT8", place(1, 16), place(3, 5)),
    ]
    run(steps, [x, codes, *outs, x], rows, num_inputs)
    for out, values in zip(outs, expected, strict=True):
        assert torch.equal(out[:, 5:55], values)
        assert not out[:, :5].any()
        assert not out[:, 55:].any()
