"""What cannot be computed is refused by name; what is accepted agrees with the model's own attention."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from tests.models.tiny import _COMMON, ARCHITECTURES, CONFIGS, make_model
from treeshare.errors import UnsupportedModelError
from treeshare.models.loading import bind_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_supported(architecture, dtype):
    geometry = bind_model(make_model(CONFIGS[architecture](), dtype)).geometry
    assert geometry.num_layers == 3
    assert geometry.head_dim == 16
    assert geometry.num_kv_heads == (4 if architecture in ("gpt2", "gpt_neox") else 2)
    assert geometry.dtype == dtype


REFUSED = {
    "sliding-window attention (window 8)": lambda: transformers.MistralConfig(**_COMMON, sliding_window=8),
    "attention soft-capping (50.0)": lambda: transformers.Gemma2Config(
        **_COMMON, head_dim=16, sliding_window=4096
    ),
    "ALiBi position biases": lambda: transformers.BloomConfig(
        vocab_size=160, hidden_size=64, n_layer=2, n_head=4
    ),
    "rope_type dynamic": lambda: transformers.LlamaConfig(
        **_COMMON, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    ),
    "attention sinks": lambda: transformers.GptOssConfig(
        **_COMMON, head_dim=16, num_local_experts=2, num_experts_per_tok=1, sliding_window=2048
    ),
    "a mixture of experts": lambda: transformers.MixtralConfig(
        **_COMMON, num_local_experts=2, num_experts_per_tok=1
    ),
    "model code without transformers' attention interface": lambda: transformers.MambaConfig(
        vocab_size=160, hidden_size=64, num_hidden_layers=2
    ),
}


@pytest.mark.parametrize("feature", REFUSED)
def test_refused_by_name(feature):
    with pytest.raises(UnsupportedModelError) as caught:
        bind_model(make_model(REFUSED[feature]()))
    assert feature in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_window_as_long_as_the_positions_is_no_window():
    bind_model(make_model(transformers.MistralConfig(**_COMMON, sliding_window=1024)))


class _MixesNeighbours(nn.Module):
    """A layer that leaks the token before into each token, along the packed row."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return self.inner(hidden) + hidden.roll(1, dims=1)


def test_mixing_along_the_row_is_found():
    model = make_model(CONFIGS["llama"]())
    model.model.layers[1].mlp = _MixesNeighbours(model.model.layers[1].mlp)
    with pytest.raises(UnsupportedModelError, match="not plain causal attention"):
        bind_model(model)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"sliding_window": 16}, "sliding-window attention"),
        ({"softcap": 30.0}, "attention soft-capping"),
        ({"s_aux": torch.zeros(4)}, "attention sinks"),
        ({"output_router_logits": True}, "a mixture of experts"),
    ],
)
def test_what_a_layers_code_asks_for_is_refused_by_name(monkeypatch, asked, named):
    """Whatever the configuration says: the keywords that reach attention decide."""
    model = make_model(CONFIGS["llama"]())
    for layer in model.model.layers:
        forward = layer.self_attn.forward
        monkeypatch.setattr(
            layer.self_attn, "forward", lambda *a, forward=forward, **k: forward(*a, **(k | asked))
        )
    with pytest.raises(UnsupportedModelError, match=named):
        bind_model(model)


def test_a_window_that_no_sequence_outgrows_is_none(monkeypatch):
    model = make_model(CONFIGS["llama"]())
    window = {"sliding_window": model.config.max_position_embeddings}
    for layer in model.model.layers:
        forward = layer.self_attn.forward
        monkeypatch.setattr(
            layer.self_attn, "forward", lambda *a, forward=forward, **k: forward(*a, **(k | window))
        )
    assert all(spec.window is None for spec in bind_model(model).specs)
