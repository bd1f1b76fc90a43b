"""What each call of attention computes, and whose KV it reads, as the model's own code says it."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.models.tiny import _COMMON, CONFIGS, make_model
from treeshare.errors import UnsupportedModelError
from treeshare.models.binding import bind_model
from treeshare.models.self_check import SelfCheck

_EXPERTS = {"num_experts_per_tok": 1, "num_local_experts": 2}


def _gemma4(**fields):
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    return transformers.Gemma4TextConfig(
        **(_COMMON | {"num_hidden_layers": 6}),
        head_dim=16,
        sliding_window=8,
        layer_types=kinds,
        vocab_size_per_layer_input=160,
        hidden_size_per_layer_input=16,
        per_layer_config={2: {"head_dim": 32}, 5: {"head_dim": 32}},
        **fields,
    )


MODELS = {
    "window in mask and keyword": (
        lambda: transformers.MistralConfig(**_COMMON, sliding_window=8),
        [(8, None)] * 3,
    ),
    "window in the mask alone": (
        lambda: transformers.Qwen2MoeConfig(
            **_COMMON,
            use_sliding_window=True,
            sliding_window=8,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=32,
        ),
        [(None, None), (8, None), (None, None)],
    ),
    "chunks": (
        lambda: transformers.Llama4TextConfig(
            **_COMMON,
            **_EXPERTS,
            head_dim=16,
            intermediate_size_mlp=96,
            attention_chunk_size=8,
            no_rope_layers=[1, 0, 1],
        ),
        [(None, 8), (None, None), (None, 8)],
    ),
    "a window of all positions": (
        lambda: transformers.MistralConfig(**_COMMON, sliding_window=1024),
        [(None, None)] * 3,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_windows_and_chunks(name):
    make, expected = MODELS[name]
    calls = bind_model(make_model(make())).calls
    assert [(call.spec.window, call.spec.chunk) for call in calls] == expected


def test_sinks_caps_and_widths():
    calls = bind_model(make_model(transformers.GptOssConfig(**_COMMON, **_EXPERTS, head_dim=16))).calls
    assert all(call.spec.has_sinks for call in calls)
    gemma = transformers.Gemma2Config(**_COMMON, head_dim=16, attn_logit_softcapping=30.0)
    assert {call.spec.soft_cap for call in bind_model(make_model(gemma)).calls} == {30.0}


def test_layers_of_other_widths_and_shared_kv():
    """Layers without KV of their own read the last of their kind that has some; it is stored once."""
    bound = bind_model(make_model(_gemma4(num_kv_shared_layers=3)))
    assert [layer.key_width for layer in bound.geometry.layers] == [16, 16, 32]
    assert [(call.layer, call.writes) for call in bound.calls] == [
        (0, True),
        (1, True),
        (2, True),
        (1, False),
        (1, False),
        (2, False),
    ]


def _asked(model, monkeypatch, **keywords):
    """Let every layer ask its attention for ``keywords``."""
    for layer in model.model.layers:
        forward = layer.self_attn.forward
        monkeypatch.setattr(
            layer.self_attn, "forward", lambda *a, forward=forward, **k: forward(*a, **(k | keywords))
        )
    return model


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"sliding_window": 16}, "a window of 16 where its mask has None"),
        ({"attention_mask": torch.ones(1, 1, 3, 3, dtype=torch.bool)}, "a mask of its own"),
        ({"position_bias": torch.zeros(1, 4, 3, 3)}, "position_bias"),
        ({"is_causal": False}, "bidirectional attention"),
        ({"indices": torch.zeros(3)}, "indices"),
    ],
)
def test_what_a_layers_code_asks_for_is_refused_by_name(monkeypatch, keywords, named):
    with pytest.raises(UnsupportedModelError, match=named):
        bind_model(_asked(make_model(CONFIGS["llama"]()), monkeypatch, **keywords))


@pytest.mark.parametrize("keywords", [{"output_router_logits": False}, {"sliding_window": 1024}])
def test_what_asks_nothing_of_attention_is_ignored(monkeypatch, keywords):
    bound = bind_model(_asked(make_model(CONFIGS["llama"]()), monkeypatch, **keywords))
    assert {call.spec.features for call in bound.calls} == {frozenset()}


def test_a_turned_router_is_no_fault_and_a_wrong_child_is():
    """In bfloat16 a mixture's rows that differ most do not count; a child's rows are more than those."""
    model = make_model(CONFIGS["llama"](), torch.bfloat16)
    bound = bind_model(model, use_kernels=False)
    check = SelfCheck(model, bound.geometry, bound.calls)
    exact = check._expected
    assert check._difference(exact) == 0
    turned = exact.clone()
    turned[3:6] = -exact[3:6]
    assert check._difference(turned) > check.limit  # a dense model has no routers
    check._choices = [[torch.zeros(1)]]
    assert check._difference(turned) == 0
    turned[-5:] = -exact[-5:]
    assert check._difference(turned) > check.limit
