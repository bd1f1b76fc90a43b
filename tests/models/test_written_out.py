"""Attention that a model's code writes out, and positions that it takes from its cache."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.models.tiny import _COMMON, make_model
from treeshare.errors import UnsupportedModelError
from treeshare.models import written_out
from treeshare.models.adapter import ATTENTION_NAME
from treeshare.models.binding import bind_model
from treeshare.models.length_check import compare
from treeshare.models.miniature import spread_weights

_FALCON = {
    "vocab_size": 160,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
}

FALCONS = {
    "one KV head": {},
    "as many KV heads": {"multi_query": False},
    "groups": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "one after the other": {"parallel_attn": False},
}


def spread(config):
    """A model whose weights all show."""
    model = make_model(config)
    spread_weights(model)
    return model


@pytest.mark.parametrize("kind", FALCONS)
def test_falcon(kind):
    compare(spread(transformers.FalconConfig(**_FALCON, **FALCONS[kind])))
    bound = bind_model(spread(transformers.FalconConfig(**_FALCON, **FALCONS[kind])))
    heads = {"one KV head": 1, "as many KV heads": 4, "groups": 2, "one after the other": 1}[kind]
    assert {layer.num_heads for layer in bound.geometry.layers} == {heads}


def test_falcon_by_transformers_attention_stays_its_own():
    model = spread(transformers.FalconConfig(**_FALCON))
    tokens = torch.arange(20).unsqueeze(0)
    expected = model(input_ids=tokens, use_cache=False).logits
    bind_model(model, use_kernels=False)
    written_out.set_attention(model, "sdpa")
    assert torch.equal(model(input_ids=tokens, use_cache=False).logits, expected)
    written_out.set_attention(model, ATTENTION_NAME)
    with pytest.raises(RuntimeError, match="only run in an engine's steps"):
        model(input_ids=tokens, use_cache=False)


def test_falcon_with_alibi_is_refused():
    with pytest.raises(UnsupportedModelError, match="ALiBi"):
        bind_model(spread(transformers.FalconConfig(**_FALCON, alibi=True)))


def _llama4():
    return transformers.Llama4TextConfig(
        **(_COMMON | {"num_hidden_layers": 2, "max_position_embeddings": 96}),
        head_dim=16,
        intermediate_size_mlp=96,
        num_local_experts=2,
        num_experts_per_tok=1,
        attention_chunk_size=None,
        layer_types=["full_attention"] * 2,
        no_rope_layers=[1, 0],
        attn_temperature_tuning=True,
        floor_scale=4,
        attn_scale=2.0,
    )


def test_llama4s_temperature_follows_positions():
    """A row of the second child stands further on in the call than in its sequence."""
    compare(spread(_llama4()))


def test_a_temperature_by_the_place_in_the_call_is_found(monkeypatch):
    """Without the binding: the length check sees it, on a small model."""
    monkeypatch.setattr(written_out, "_FORWARDS", {})
    with pytest.raises(UnsupportedModelError, match="beyond its windows, chunks or other lengths"):
        compare(spread(_llama4()))
