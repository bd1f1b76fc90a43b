"""What cannot be computed is refused by name; what is accepted agrees with the model's own attention."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from tests.models.tiny import _COMMON, ARCHITECTURES, CONFIGS, make_model
from treeshare.errors import UnsupportedModelError
from treeshare.kv import LayerKV
from treeshare.models.binding import bind_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_supported(architecture, dtype):
    geometry = bind_model(make_model(CONFIGS[architecture](), dtype)).geometry
    heads = 4 if architecture in ("gpt2", "gpt_neox") else 2
    assert geometry.layers == (LayerKV(num_heads=heads, key_width=16, value_width=16),) * 3
    assert geometry.dtype == dtype


def test_no_fast_attention_of_torchs_is_needed(monkeypatch):
    """They ask for instructions: in bfloat16 one fails where torch, and not oneDNN, is kept from AVX-512."""
    plain, asked = torch.nn.functional.scaled_dot_product_attention, []

    def attend(*args, **options):
        asked.append(torch.backends.cuda.flash_sdp_enabled())  # the switch is the CPU's, too
        return plain(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    assert torch.backends.cuda.flash_sdp_enabled()
    bind_model(make_model(CONFIGS["llama"](), torch.bfloat16))
    assert asked
    assert not any(asked)


REFUSED = {
    "ALiBi position biases": lambda: transformers.BloomConfig(
        vocab_size=160, hidden_size=64, n_layer=2, n_head=4
    ),
    "rope_type dynamic": lambda: transformers.LlamaConfig(
        **_COMMON, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    ),
    "recurrent or convolutional state": lambda: transformers.MambaConfig(
        vocab_size=160, hidden_size=64, num_hidden_layers=2
    ),
    "not a causal language model (an encoder: is_decoder is not set)": lambda: transformers.BertConfig(
        vocab_size=160, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    ),
    "not a causal language model (the decoder half of an encoder-decoder)": lambda: transformers.BartConfig(
        vocab_size=160, d_model=64, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64
    ),
    "positions that count from pad_token_id": lambda: transformers.RobertaConfig(
        vocab_size=160,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        is_decoder=True,
    ),
    "layers without transformers' attention interface": lambda: transformers.GPTNeoConfig(
        vocab_size=160, hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global"], 2]]
    ),
}


def unsupported(config):
    """Why a model of this configuration is refused, on one line."""
    with pytest.raises(UnsupportedModelError) as caught:
        bind_model(make_model(config))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("feature", REFUSED)
def test_refused_by_name(feature):
    assert feature in unsupported(REFUSED[feature]())


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


# -- what a length, a layer's type or a module decides --

_LONG = {"max_position_embeddings": 96, "num_hidden_layers": 2}


def _gemma3(rope):
    kinds = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    return transformers.Gemma3TextConfig(
        **(_COMMON | _LONG),
        head_dim=16,
        sliding_window=4096,
        layer_types=["full_attention"] * 2,
        rope_parameters=kinds | {"full_attention": {"rope_theta": 1e4} | rope},
    )


_FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 32}

LENGTHS = {
    "bidirectional attention": lambda: transformers.GemmaConfig(
        **_COMMON, head_dim=16, use_bidirectional_attention=True
    ),
    "rope_type longrope": lambda: _gemma3({"rope_type": "longrope", "factor": 3.0} | _FACTORS),
    "rope_type dynamic": lambda: _gemma3({"rope_type": "dynamic", "factor": 2.0}),
    "a composite configuration": lambda: transformers.Gemma3Config(
        text_config=_gemma3({}).to_dict(),
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
        },
    ),
}


@pytest.mark.parametrize("feature", LENGTHS)
def test_what_a_short_prompt_does_not_show_is_refused_by_name(feature):
    assert feature in unsupported(LENGTHS[feature]())


def test_a_rope_by_layer_type_that_is_fixed_is_no_reason():
    assert len(bind_model(make_model(_gemma3({"rope_type": "linear", "factor": 8.0}))).calls) == 2


def test_attention_that_is_told_not_to_be_causal_is_refused():
    """By the module, whatever the configuration says; with the keyword, which goes before."""
    model = make_model(CONFIGS["llama"]())
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(UnsupportedModelError, match="bidirectional attention"):
        bind_model(model)


def test_logits_that_are_not_finite_are_refused():
    model = make_model(CONFIGS["llama"]())
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = torch.nan
    with pytest.raises(UnsupportedModelError, match=r"not finite: model.layers.1.mlp.up_proj.weight$"):
        bind_model(model)
