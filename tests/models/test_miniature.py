"""A model is made small without losing what a length or a layer's type decides."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.models.tiny import _COMMON, make_model
from treeshare.models.miniature import MAX_NUMBERS, Miniature, small_model, spread_weights

LENGTHS = {"first_length": 4, "max_positions": 64}


def test_lengths_become_short_and_stay_different():
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 8192}
    config = transformers.Llama4TextConfig(rope_parameters=rope, floor_scale=4096, attention_chunk_size=8192)
    small = Miniature(**LENGTHS).config(config)
    lengths = [
        small.floor_scale,
        small.attention_chunk_size,
        small.rope_parameters["original_max_position_embeddings"],
    ]
    assert sorted(lengths) == [4, 5, 6]
    assert small.max_position_embeddings == 64
    assert (small.attn_scale, small.attn_temperature_tuning) == (config.attn_scale, True)


def test_each_kind_of_layer_is_kept():
    config = transformers.Gemma4TextConfig(num_kv_shared_layers=10)
    small = Miniature(**LENGTHS).config(config)
    assert small.num_hidden_layers == len(small.layer_types) <= 8
    assert set(small.layer_types) == {"sliding_attention", "full_attention"}
    assert 0 < small.num_kv_shared_layers < small.num_hidden_layers
    shared = small.layer_types[-small.num_kv_shared_layers :]
    assert set(shared) <= set(small.layer_types[: -small.num_kv_shared_layers])


def test_a_window_of_all_positions_stays_one():
    config = transformers.MistralConfig(sliding_window=131072, max_position_embeddings=131072)
    assert Miniature(**LENGTHS).config(config).sliding_window == 64


FULL_SIZE = [
    transformers.LlamaConfig,
    transformers.Qwen3MoeConfig,
    transformers.Gemma3TextConfig,
    transformers.Gemma4TextConfig,
    transformers.GptOssConfig,
    transformers.DeepseekV3Config,
    transformers.Llama4TextConfig,
    transformers.FalconConfig,
]


@pytest.mark.parametrize("kind", FULL_SIZE, ids=lambda kind: kind.model_type)
def test_configurations_of_full_size(kind):
    """As the classes have them by default: billions of weights."""
    config = kind()
    before = config.to_dict()
    model = small_model(transformers.MODEL_FOR_CAUSAL_LM_MAPPING[kind], config, **LENGTHS)
    assert config.to_dict() == before
    assert sum(parameter.numel() for parameter in model.parameters()) < MAX_NUMBERS / 20
    assert type(model) is transformers.MODEL_FOR_CAUSAL_LM_MAPPING[kind]


def test_what_cannot_be_made_small_is_none(monkeypatch):
    def refuse(self, config):
        raise ValueError("no")

    errors = []
    monkeypatch.setattr(Miniature, "config", refuse)
    config = transformers.LlamaConfig(**_COMMON)
    assert small_model(transformers.LlamaForCausalLM, config, **LENGTHS, errors=errors) is None
    assert [str(error) for error in errors] == ["no"] * 2


def test_every_weight_shows():
    """Of any of them, a change moves the logits by more than the check would call rounding."""
    model = make_model(transformers.Qwen2Config(**_COMMON))
    spread_weights(model)
    tokens = torch.arange(12).unsqueeze(0)
    with torch.inference_mode():
        before = model(input_ids=tokens).logits
        for name, parameter in model.named_parameters():
            kept = parameter.clone()
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            change = (model(input_ids=tokens).logits - before).abs().max() / before.abs().max()
            # A key's bias adds the same to all scores of a row, but for rope.
            assert change > (1e-3 if "k_proj.bias" in name else 1e-2), name
            parameter.copy_(kept)
