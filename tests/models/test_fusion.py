"""Fused layers against transformers' own modules: the same bits, or at most twice their rounding error."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from tests.models.tiny import CONFIGS, make_model
from treeshare.models import loading
from treeshare.models.fusion import fuse_layers, unfuse_layers
from treeshare.models.loading import bind_model
from treeshare.models.self_check import SelfCheck
from treeshare.native import kernels

pytestmark = pytest.mark.usefixtures("each_kernel_level")

WIDTHS = [16, 64, 90, 576]
"""Whole vectors of sixteen, and not."""


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=str)
def dtype(request):
    return request.param


def random(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def assert_as_good(got, eager, exact):
    """At most twice the error of eager code in the same dtype, plus one rounding of the result."""
    error = (got.double() - exact).abs()
    budget = 2 * (eager.double() - exact).abs().max() + exact.abs() * torch.finfo(got.dtype).eps
    assert torch.all(error <= budget)


def exact_norm(norm, x):
    """In float64, which transformers' own module never uses."""
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.double()


@pytest.mark.parametrize("rows", [1, 3, 700])
@pytest.mark.parametrize("width", WIDTHS)
def test_norms(rows, width, dtype):
    x, delta = random(rows, width, dtype=dtype), random(rows, width, dtype=dtype) * 3
    norm = LlamaRMSNorm(width, eps=1e-5).to(dtype)
    norm.weight.data = random(width, dtype=dtype)
    total, out, out_of_total = x + delta, torch.empty_like(x), torch.empty_like(x)
    pointers = norm.weight.data_ptr(), out.data_ptr()
    kernels(dtype).treeshare_rms_norm(x.data_ptr(), *pointers, rows, width, 1e-5)
    with torch.no_grad():
        assert_as_good(out, norm(x), exact_norm(norm, x))
        summed = x.clone()
        kernels(dtype).treeshare_add_rms_norm(
            summed.data_ptr(),
            delta.data_ptr(),
            norm.weight.data_ptr(),
            out_of_total.data_ptr(),
            rows,
            width,
            1e-5,
        )
        assert torch.equal(summed, total)
        assert_as_good(out_of_total, norm(total), exact_norm(norm, total))


@pytest.mark.parametrize("head_dim", [8, 16, 64, 96, 128])
def test_rotary_positions_to_the_bit(head_dim, dtype):
    """Rotated heads are transformers' own; what lies beside them in the row stays."""
    rows, heads, width = 37, 5, 5 * head_dim + 24
    x, angles = random(rows, width, dtype=dtype), torch.randn(rows, head_dim // 2).repeat(1, 2)
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    by_head = x[:, : heads * head_dim].view(rows, heads, head_dim).transpose(0, 1).unsqueeze(0)
    expected, _ = apply_rotary_pos_emb(by_head, by_head, cosine.unsqueeze(0), sine.unsqueeze(0))
    got = x.clone()
    kernels(dtype).treeshare_rotate(
        got.data_ptr(), cosine.data_ptr(), sine.data_ptr(), rows, width, heads, head_dim
    )
    assert torch.equal(
        got[:, : heads * head_dim].view(rows, heads, head_dim), expected[0].transpose(0, 1).contiguous()
    )
    assert torch.equal(got[:, heads * head_dim :], x[:, heads * head_dim :])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scale", [1.0, 40.0, 1e30])
def test_gated_activation(width, scale, dtype):
    gate_up = random(50, 2 * width, dtype=dtype) * scale
    gate, up = gate_up.split(width, dim=1)
    out = torch.empty(50, width, dtype=dtype)
    kernels(dtype).treeshare_silu_mul(gate_up.data_ptr(), out.data_ptr(), 50, width)
    finite = torch.isfinite(torch.nn.functional.silu(gate) * up)
    exact = torch.nn.functional.silu(gate.double()) * up.double()
    eager = torch.nn.functional.silu(gate) * up
    assert torch.equal(torch.isfinite(out), finite)
    assert_as_good(out[finite], eager[finite], exact[finite])


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
def test_a_model(architecture, dtype):
    """Fusing keeps names, values and memory of the weights; unfusing gives the old forward back."""
    model = make_model(CONFIGS[architecture](), dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bound = bind_model(model)
    geometry, fused = bound.geometry, bound.fused
    assert len(fused) == 3
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert fused[0].joined[0].weight.data_ptr() == model.model.layers[0].self_attn.q_proj.weight.data_ptr()
    unfuse_layers(model)
    check = SelfCheck(model, geometry)
    unfused_error = check.error()
    assert len(fuse_layers(model)[0]) == 3
    assert check.error() <= 2 * unfused_error
    unfuse_layers(model)
    assert check.error() == unfused_error


@pytest.mark.parametrize(
    ("architecture", "dtype", "reason"),
    [
        ("qwen3", torch.bfloat16, "Qwen3DecoderLayer is none of LlamaDecoderLayer, "),
        ("gpt2", torch.bfloat16, "GPT2Block is none of"),
        ("olmo2", torch.bfloat16, "Olmo2DecoderLayer is none of"),
    ],
)
def test_what_stays_as_it_is_says_why(architecture, dtype, reason):
    bound = bind_model(make_model(CONFIGS[architecture](), dtype))
    assert bound.fused == ()
    assert bound.unfused_reason.startswith(reason)


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float16), (torch.float32, torch.bfloat16)])
def test_other_and_mixed_dtypes_are_not_fused(dtypes):
    model = make_model(CONFIGS["llama"](), dtypes[0])
    model.model.layers[1].input_layernorm.to(dtypes[1])
    fused, reason = fuse_layers(model)
    assert fused == []
    assert reason == "its weights are neither all bfloat16 nor all float32"


def test_layers_that_only_a_check_finds_wrong_say_so(monkeypatch):
    monkeypatch.setattr(loading, "_KERNEL_ERROR", 0.0)
    monkeypatch.setattr(loading.SelfCheck, "error", lambda self: 1.0)
    monkeypatch.setattr(loading.SelfCheck, "check", lambda self: 0.0)
    bound = bind_model(make_model(CONFIGS["llama"](), torch.bfloat16))
    assert bound.unfused_reason == "compiled layers are too far from the model's own logits"
    assert bind_model(make_model(CONFIGS["llama"]()), use_kernels=False).unfused_reason


def test_a_layer_that_computes_something_else_is_not_fused():
    """A known class with a changed activation, or an extra part."""
    model = make_model(CONFIGS["llama"](), torch.bfloat16)
    model.model.layers[1].mlp.act_fn = torch.nn.GELU()
    assert fuse_layers(model) == ([], "LlamaDecoderLayer has another activation than SiLU")
    model = make_model(CONFIGS["llama"](), torch.bfloat16)
    model.model.layers[2].self_attn.q_norm = torch.nn.Identity()
    assert fuse_layers(model) == ([], "LlamaDecoderLayer has other parts: q_norm")
