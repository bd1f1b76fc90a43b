"""What level portable lets torch compute, what it computes itself, and what it refuses."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.kernel_levels import PORTABLE_CODES, portable_by, using_kernels
from tests.models.tiny import CONFIGS, make_model
from treeshare.errors import UnsupportedModelError
from treeshare.models.binding import bind_model
from treeshare.models.portable import FixedOperations, fix_norms, fix_tables

pytestmark = pytest.mark.skipif(not PORTABLE_CODES, reason="no compiled library")


@pytest.fixture(autouse=True)
def portable():
    with using_kernels("portable"):
        yield


X = torch.linspace(-2, 2, 24).view(4, 6)

REFUSED = {
    "mean": lambda: X.mean(-1),
    "sum": lambda: X.sum(),
    "mm": lambda: X @ X.T,
    "_softmax": lambda: X.softmax(-1),
    "exp": lambda: X.exp(),
    "tanh": lambda: X.tanh(),
    "silu": lambda: nn.functional.silu(X),
    "gelu": lambda: nn.functional.gelu(X),
    "rsqrt": lambda: X.rsqrt(),
    "native_layer_norm": lambda: nn.functional.layer_norm(X, (6,)),
    "cos": lambda: X.double().cos(),
    "add": lambda: torch.add(X, X, alpha=3),
    "pow": lambda: X**3,
    "addcmul": lambda: torch.addcmul(X, X, X),
    "cumsum": lambda: X.cumsum(0),
}

LET_THROUGH = (
    lambda: X[1:].T.contiguous().bfloat16() * 2 + 1,
    lambda: torch.cat([X, -X], -1) / 3,
    lambda: torch.arange(5).cumsum(0).sum(),
    lambda: X[:, :1] @ X[:1],
    lambda: torch.where(X > 0, X.abs().sqrt(), X),
    lambda: nn.functional.embedding(torch.tensor([[1, 2]]), X),
    lambda: X.to(torch.float64).repeat_interleave(2, 0),
)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("inference", [False, True])
def test_what_differs_between_cpus_is_refused_by_name(name, inference):
    message = rf"^llama: TREESHARE_KERNELS=portable: its forward needs torch's {name}, whose last bits differ"
    refused = pytest.raises(UnsupportedModelError, match=message)
    with torch.inference_mode(inference), refused, FixedOperations("llama"):
        REFUSED[name]()


@pytest.mark.parametrize("compute", LET_THROUGH)
@pytest.mark.parametrize("inference", [False, True])
def test_what_is_fixed_is_let_through(compute, inference):
    with torch.inference_mode(inference):
        expected = compute()
        with FixedOperations("llama"):
            found = compute()
        assert torch.equal(found, expected)


def test_rotary_tables_are_rounded_correctly():
    """From float32 angles, as transformers has them; each of the angle's factors is rounded once, too."""
    model = make_model(CONFIGS["llama"]())
    fix_tables(model)
    rotary = model.model.rotary_emb
    width = 2 * len(rotary.inv_freq)
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    base = model.config.rope_parameters["rope_theta"]
    powers = np.array([np.float32(mpmath.mpf(base) ** mpmath.mpf(float(e))) for e in exponents])
    frequencies = np.float32(1) / powers
    assert np.array_equal(rotary.inv_freq.numpy(), frequencies)
    positions = torch.tensor([[0, 1, 7, 300, 1023]])
    angles = (positions[0].numpy().astype(np.float32)[:, None] * frequencies).ravel()
    cosine, sine = (table[0, :, : width // 2].numpy().ravel() for table in rotary(torch.zeros(1), positions))
    for found, function in ((cosine, mpmath.cos), (sine, mpmath.sin)):
        assert found.tolist() == [np.float32(function(mpmath.mpf(float(angle)))) for angle in angles]


def _root_mean_square(x, weight):
    return x * (x.square().mean(-1, True) + 1e-5).rsqrt() * weight


def _layer_norm(x, weight):
    return nn.functional.layer_norm(x, weight.shape, weight, None, 1e-5)


LAST_NORMS = {
    LlamaRMSNorm: _root_mean_square,
    GemmaRMSNorm: lambda x, weight: _root_mean_square(x, 1 + weight),
    nn.LayerNorm: _layer_norm,
}
"""What each computes, to be done in float64."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LAST_NORMS)
def test_a_last_norm_of_any_kind_has_one_result(kind, dtype):
    draws = torch.Generator().manual_seed(0)
    hidden = (torch.randn(1, 9, 64, generator=draws) * 5).to(dtype)
    model = make_model(CONFIGS["llama"](), dtype)
    model.model.norm = norm = kind(64, eps=1e-5).to(dtype)
    norm.weight.data.copy_(torch.randn(64, generator=draws))
    exact = LAST_NORMS[kind](hidden.double(), norm.weight.detach().double())
    found = []
    with torch.inference_mode():
        own_error = (norm(hidden) - exact).abs().max()
        for code in PORTABLE_CODES:
            with portable_by(code):
                fix_norms(model)
            with FixedOperations("llama"):
                found.append(norm(hidden))
            del norm.forward
    assert all(torch.equal(result, found[0]) for result in found)
    assert (found[0] - exact).abs().max() <= 2 * own_error


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("gpt2", "qwen3"))) for name in CONFIGS],
)
def test_no_tiny_model_is_refused(architecture):
    bind_model(make_model(CONFIGS[architecture](), torch.bfloat16))


def test_a_model_that_stays_unfused_is_refused():
    model = make_model(CONFIGS["llama"]())
    model.model.layers[0].mlp.act_fn = nn.Softplus()
    with pytest.raises(
        UnsupportedModelError, match=r"^llama: TREESHARE_KERNELS=portable: its layers are not comp"
    ):
        bind_model(model)


def test_compiled_layers_need_the_cpu():
    with pytest.raises(
        UnsupportedModelError, match=r"TREESHARE_KERNELS=portable: compiled layers are the CPU's"
    ):
        bind_model(make_model(CONFIGS["llama"]()), use_kernels=False)


def test_a_table_that_is_computed_when_the_model_is_made_is_refused():
    model = make_model(CONFIGS["llama"]())
    model.model.layers[0].mlp.register_buffer("slopes", torch.ones(3), persistent=False)
    with pytest.raises(UnsupportedModelError, match=r"LlamaMLP computes slopes when it is made"):
        bind_model(model)


def test_an_operation_outside_of_the_layers_is_refused():
    model = make_model(CONFIGS["llama"]())
    model.model.norm.register_forward_hook(lambda module, arguments, output: output.tanh().atanh())
    with pytest.raises(UnsupportedModelError, match=r"its forward needs torch's tanh"):
        bind_model(model)
