"""GGUF files of several architectures: scores are those of the model that the file was written of."""

from __future__ import annotations

import math
import re

import gguf
import numpy as np
import pytest
import torch
import transformers

from tests.models.gguf_models import (
    ERROR,
    add_vocabulary,
    finish,
    logprobs_of,
    make_writer,
    tensors_of,
    values_of,
    write_model,
)
from tests.models.tiny import _COMMON, make_model
from tests.turns import slow_but
from treeshare import LLM
from treeshare.errors import ModelLoadError
from treeshare.models import load_model
from treeshare.models.loading import outline_model

_TOKENS = torch.randint(2, 160, (90,), generator=torch.Generator().manual_seed(3)).tolist()

_GEMMA = {"attention.key_length": 16, "attention.value_length": 16, "attention.sliding_window": 16}
_SMALL = {"vocab_size": 160, "hidden_size": 64, "bos_token_id": 0, "eos_token_id": 0}
_EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def error(path, model, **options):
    """How far scores of a file are from a model's."""
    llm = LLM(path, dtype="float32", kv_budget_bytes=1 << 24, **options)
    (score,) = llm.score([(_TOKENS[:1], _TOKENS[1:])], use_tqdm=False)
    return float((torch.tensor(score.logprobs) - logprobs_of(model, _TOKENS)).abs().max())


def _config(name, **fields):
    return getattr(transformers, f"{name}Config")(**(_COMMON | fields))


def _experts(count):
    return {count: 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


ARCHITECTURES = {
    "llama": lambda: (_config("Llama"), {"rope.dimension_count": 16}),
    "qwen2": lambda: (_config("Qwen2"), {}),
    "qwen3": lambda: (_config("Qwen3", head_dim=16), {"attention.key_length": 16}),
    "phi3": lambda: (_config("Phi3"), {"rope.dimension_count": 16}),
    "gemma2": lambda: (
        _config("Gemma2", head_dim=16, sliding_window=16, query_pre_attn_scalar=16),
        _GEMMA | _CAPS,
    ),
    "gemma3": lambda: (
        _config("Gemma3Text", head_dim=16, sliding_window=16, query_pre_attn_scalar=16),
        _GEMMA | {"rope.freq_base": 1e6},
    ),
    "gemma3, another local base": lambda: (
        _config(
            "Gemma3Text",
            head_dim=16,
            sliding_window=16,
            query_pre_attn_scalar=16,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        ),
        _GEMMA | {"rope.freq_base": 1e6, "rope.freq_base_swa": 5e3, "attention.sliding_window_pattern": 6},
    ),
    "llama, biases": lambda: (_config("Llama", attention_bias=True, mlp_bias=True), {}),
    "qwen3, biases": lambda: (
        _config("Qwen3", head_dim=16, attention_bias=True),
        {"attention.key_length": 16},
    ),
    "qwen2moe": lambda: (
        _config("Qwen2Moe", **_experts("num_experts"), shared_expert_intermediate_size=48),
        _EXPERTS | {"expert_shared_feed_forward_length": 48},
    ),
    "qwen3moe": lambda: (
        _config("Qwen3Moe", **_experts("num_experts"), head_dim=16, norm_topk_prob=True),
        _EXPERTS | {"attention.key_length": 16, "expert_weights_norm": True},
    ),
    "minimax-m2": lambda: (
        _config(
            "MiniMaxM2",
            **_experts("num_local_experts") | {"intermediate_size": 32},
            head_dim=16,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        _EXPERTS | {"attention.key_length": 16, "rope.dimension_count": 8, "expert_gating_func": 2},
    ),
    "stablelm": lambda: (
        _config("StableLm", use_qkv_bias=True),
        {"attention.layer_norm_epsilon": 1e-5, "rope.dimension_count": 4, "use_parallel_residual": False},
    ),
    "stablelm, parallel": lambda: (
        _config("StableLm", use_parallel_residual=True),
        {"attention.layer_norm_epsilon": 1e-5, "rope.dimension_count": 4, "use_parallel_residual": True},
    ),
    "starcoder2": lambda: (_config("Starcoder2", norm_epsilon=1e-5), {"attention.layer_norm_epsilon": 1e-5}),
    "nemotron": lambda: (
        _config("Nemotron", head_dim=16),
        {"attention.layer_norm_epsilon": 1e-5, "rope.dimension_count": 8},
    ),
    "falcon": lambda: (
        transformers.FalconConfig(**_SMALL, num_hidden_layers=2, num_attention_heads=4),
        {"attention.head_count_kv": 1, "attention.layer_norm_epsilon": 1e-5, "context_length": 1024},
    ),
    "gpt2": lambda: (
        transformers.GPT2Config(**_SMALL, n_layer=2, n_head=4),
        {"attention.layer_norm_epsilon": 1e-5, "context_length": 1024},
    ),
}


@pytest.mark.parametrize(
    "architecture",
    slow_but(["gemma2", "qwen3moe", "llama, biases"], ARCHITECTURES),
)
def test_an_architectures_scores(architecture, tmp_path):
    config, more = ARCHITECTURES[architecture]()
    model = write_model(tmp_path / "x.gguf", config, architecture.partition(",")[0], more=more)
    assert error(tmp_path / "x.gguf", model) <= ERROR


_LEFT_OUT = {
    "llama": ("Llama", {}, {"blk.0.attn_q_norm.weight": np.ones(16)}, "blk.0.attn_q_norm.weight"),
    "qwen2": ("Qwen2", {}, {"blk.1.attn_q.scale": np.ones(1)}, "blk.1.attn_q.scale"),
    "qwen3": ("Qwen3", {"expert_weights_scale": 2.5}, {}, "expert_weights_scale (2.5)"),
    "gemma3": ("Gemma3Text", _GEMMA | {"attention.sliding_window_pattern": 2}, {}, "sliding_window_pattern"),
    "phi3": ("Phi3", {"attention.scale": 0.5}, {}, "attention.scale (0.5)"),
    "gemma4": ("Llama", {}, {}, "a GGUF file of architecture gemma4"),
    "gpt-oss": ("Llama", {}, {}, "a GGUF file of architecture gpt-oss"),
    "mamba": ("Llama", {}, {}, "a GGUF file of architecture mamba"),
}


@pytest.mark.parametrize("architecture", _LEFT_OUT)
def test_what_transformers_would_leave_out_is_refused(architecture, tmp_path):
    kind, more, extra, named = _LEFT_OUT[architecture]
    model = make_model(_config(kind))
    own = architecture if architecture in ARCHITECTURES else "llama"
    writer = make_writer(tmp_path / "x.gguf", architecture, values_of(model.config, more))
    add_vocabulary(writer)
    finish(writer, tensors_of(model, own) | extra)
    messages = set()
    for read in (load_model, outline_model):
        with pytest.raises(ModelLoadError, match=re.escape(named)) as caught:
            read(tmp_path / "x.gguf", "float32")
        messages.add(str(caught.value))
    (message,) = messages
    assert message.endswith("; use the model's safetensors instead")


def _llama3_factors():
    """What llama.cpp's converter writes for Llama 3.1."""
    factors = []
    for i in range(8):
        wavelength = 2 * math.pi * 1e4 ** (i / 8)
        smooth = (32 / wavelength - 1.0) / (4.0 - 1.0)
        factors.append(1.0 if wavelength < 8 else 8.0 if wavelength > 32 else 1 / ((1 - smooth) / 8 + smooth))
    return factors


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 1e4,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 1e4,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
    "attention_factor": 1.2,
    "original_max_position_embeddings": 32,
}

ROPES = {
    "rope_freqs": ("Llama", _LLAMA3, {}, {"rope_freqs.weight": _llama3_factors()}),
    "linear": (
        "Llama",
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        {"rope.scaling.factor": 4.0},
        {},
    ),
    "yarn": (
        "Llama",
        _YARN,
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
        {},
    ),
    "longrope": (
        "Phi3",
        _LONG,
        {"rope.scaling.attn_factor": 1.2, "rope.scaling.original_context_length": 32},
        {
            "rope_factors_short.weight": _LONG["short_factor"],
            "rope_factors_long.weight": _LONG["long_factor"],
        },
    ),
}


@pytest.mark.parametrize(
    "kind", ["rope_freqs", *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(ROPES)[1:])]
)
def test_a_ropes_scores(kind, tmp_path):
    name, rope, more, extra = ROPES[kind]
    fields = {"original_max_position_embeddings": 32} if name == "Phi3" else {}
    model = write_model(
        tmp_path / "x.gguf",
        _config(name, rope_parameters=rope, **fields),
        name.lower(),
        more={"rope.dimension_count": 16} | more,
        extra={key: torch.tensor(value).numpy() for key, value in extra.items()},
    )
    assert error(tmp_path / "x.gguf", model) <= ERROR
    plain = write_model(tmp_path / "y.gguf", _config(name, **fields), name.lower())
    assert error(tmp_path / "x.gguf", plain) > 0.1  # the test can tell


def _q6_k(blocks):
    """The numbers of blocks of 256: six bits each, in two parts, and a scale for each sixteen."""
    rows, numbers = len(blocks), np.zeros((len(blocks), 256), np.float32)
    low, high = blocks[:, :128].astype(np.int32), blocks[:, 128:192].astype(np.int32)
    scales = blocks[:, 192:208].copy().view(np.int8).astype(np.float32)
    whole = blocks[:, 208:210].copy().view(np.float16).astype(np.float32)
    for half in range(2):
        for quarter in range(4):
            part = low[:, 64 * half + 32 * (quarter % 2) :][:, :32] >> (4 * (quarter // 2)) & 15
            part = (part | (high[:, 32 * half :][:, :32] >> (2 * quarter) & 3) << 4) - 32
            scale = np.repeat(scales[:, 8 * half + 2 * quarter :][:, :2], 16, axis=1)
            numbers[:, 128 * half + 32 * quarter :][:, :32] = whole * scale * part
    return numbers.reshape(rows, 256)


@pytest.mark.slow
def test_k_quants(tmp_path):
    """Blocks drawn at random; their numbers by ggml's formula, written once more here."""
    fields = {**_COMMON, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**fields)
    draws = np.random.default_rng(3)
    blocks = draws.integers(0, 256, (256, 210), dtype=np.uint8)
    blocks[:, 208:210] = np.full((256, 1), 1e-3, np.float16).view(np.uint8)
    extra = {"blk.0.ffn_up.weight": (blocks, gguf.GGMLQuantizationType.Q6_K)}
    write_model(tmp_path / "x.gguf", config, "llama", extra=extra)
    loaded = load_model(tmp_path / "x.gguf", "float32")
    got = loaded.model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    assert np.array_equal(got, _q6_k(blocks))
    assert load_model(tmp_path / "x.gguf").dtype == "bfloat16"
