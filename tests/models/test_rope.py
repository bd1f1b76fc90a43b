"""Ropes by length: scores are transformers' own on each side of the original context."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.models.gguf_models import logprobs_of
from tests.models.tiny import _COMMON, make_model
from treeshare import LLM, SamplingParams
from treeshare.errors import ConfigError
from treeshare.models.miniature import Miniature, spread_weights
from treeshare.models.rope import hold_rope

_FIELDS = {**_COMMON, "num_hidden_layers": 2, "max_position_embeddings": 128}
_ERROR = 2e-4
_ORIGINAL = 32
_THETA = {"rope_theta": 1e4}
_LONG = _THETA | {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": _ORIGINAL,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
}
_YARN = _THETA | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": _ORIGINAL}
_LLAMA3 = _YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}

_TOKENS = torch.randint(2, 160, (110,), generator=torch.Generator().manual_seed(1)).tolist()


def _llama(rope, **more):
    return transformers.LlamaConfig(**_FIELDS, rope_parameters=rope, **more)


def _gemma3(rope):
    return transformers.Gemma3TextConfig(
        **_FIELDS,
        head_dim=16,
        sliding_window=16,
        layer_types=["full_attention", "sliding_attention"],
        rope_parameters={"sliding_attention": {"rope_type": "default"} | _THETA, "full_attention": rope},
    )


def saved(config, folder):
    model = make_model(config)
    spread_weights(model)
    model.save_pretrained(folder)
    return model


def error(model, folder, length, limit=None):
    """How far scores of ``length`` tokens are from the model's own."""
    tokens = _TOKENS[:length]
    llm = LLM(folder, dtype="float32", max_model_len=limit, kv_budget_bytes=1 << 24)
    (score,) = llm.score([(tokens[:1], tokens[1:])], use_tqdm=False)
    return float((torch.tensor(score.logprobs) - logprobs_of(model, tokens)).abs().max())


BY_LENGTH = {
    "llama": lambda: _llama(_LONG),
    "gemma3": lambda: _gemma3(_LONG),
    "phi3": lambda: transformers.Phi3Config(
        **_FIELDS, rope_parameters=_LONG, original_max_position_embeddings=_ORIGINAL
    ),
    "phimoe": lambda: transformers.PhimoeConfig(
        **_FIELDS, num_local_experts=2, rope_parameters=_LONG | {"short_mscale": 1.1, "long_mscale": 1.4}
    ),
}


@pytest.mark.parametrize(
    "kind", ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(BY_LENGTH)[1:])]
)
def test_longrope_on_each_side(kind, tmp_path, capsys):
    """``max_model_len`` decides, for short sequences too: they are wrong on the other side."""
    model = saved(BY_LENGTH[kind](), tmp_path)
    assert error(model, tmp_path, _ORIGINAL, limit=_ORIGINAL) <= _ERROR
    assert "longrope" not in capsys.readouterr().err
    assert error(model, tmp_path, 110) <= _ERROR
    assert (
        "long factors for all positions, as max_model_len is 128; with 32 or less" in capsys.readouterr().err
    )
    assert error(model, tmp_path, _ORIGINAL, limit=64) > 0.02


FIXED = {
    "dynamic": lambda: _llama(_THETA | {"rope_type": "dynamic", "factor": 2.0}),
    "dynamic by layer": lambda: _gemma3(_THETA | {"rope_type": "dynamic", "factor": 2.0}),
    "linear by layer": lambda: _gemma3(_THETA | {"rope_type": "linear", "factor": 8.0}),
    "yarn": lambda: _llama(_YARN),
    "llama3": lambda: _llama(_LLAMA3),
    "partial": lambda: transformers.PhiConfig(
        **_FIELDS, rope_parameters=_LLAMA3 | {"partial_rotary_factor": 0.5}
    ),
    "proportional": lambda: transformers.Gemma4TextConfig(
        **{key: value for key, value in _FIELDS.items() if key != "initializer_range"},
        head_dim=16,
        global_head_dim=32,
        sliding_window=16,
        hidden_size_per_layer_input=0,
        layer_types=["sliding_attention", "full_attention"],
    ),
}
"""Of which some depend on the length, but not on any that is allowed."""


@pytest.mark.parametrize(
    "kind", ["dynamic", *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(FIXED)[1:])]
)
def test_others_behind_the_original_context(kind, tmp_path):
    assert error(saved(FIXED[kind](), tmp_path), tmp_path, 110) <= _ERROR


def test_max_model_len(tmp_path):
    """It bounds prompts, completions and scores; the model's positions bound it."""
    saved(_llama(_YARN), tmp_path)
    llm = LLM(tmp_path, dtype="float32", max_model_len=40, kv_budget_bytes=1 << 22)
    assert llm.max_model_len == 40
    with pytest.raises(
        ConfigError, match=r"prompts\[0\]: got '41 tokens', expected fewer than the model's 40"
    ):
        llm.generate([_TOKENS[:41]])
    (output,) = llm.generate([_TOKENS[:30]], SamplingParams(max_tokens=99, ignore_eos=True), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 10
    for wrong in (129, 1, 0, 2.5, True):
        with pytest.raises(ConfigError, match="max_model_len"):
            LLM(tmp_path, max_model_len=wrong)


def test_factors_fit_a_small_model():
    """Else the check of windows, which is on a small model, would be left out."""
    config = transformers.Phi3Config(
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_parameters=_LONG | {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
    )
    small = Miniature(first_length=4, max_positions=64).config(config)
    assert len(small.rope_parameters["long_factor"]) == small.hidden_size // small.num_attention_heads // 2


def test_a_held_rope_is_held_once():
    model = make_model(_llama(_LONG))
    assert hold_rope(model, _ORIGINAL) is None
    assert hold_rope(model, _ORIGINAL + 1) == hold_rope(model, 128) == _ORIGINAL
    with torch.inference_mode():
        plain = make_model(_llama(_LONG)).model.rotary_emb
        x, positions = torch.zeros(1), torch.arange(100).unsqueeze(0)
        for got, wanted in zip(model.model.rotary_emb(x, positions[:, :9]), plain(x, positions), strict=True):
            assert torch.equal(got, wanted[:, :9])
