"""Without weights the same is known of a model's KV as when it is loaded."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.models.test_calls import MODELS, _gemma4
from tests.models.tiny import _COMMON, ARCHITECTURES, CONFIGS, make_model
from treeshare.errors import ModelLoadError, UnsupportedModelError
from treeshare.models.binding import bind_model
from treeshare.models.outline import find_outline

KINDS = {
    **{name: CONFIGS[name] for name in ARCHITECTURES},
    **{name: make for name, (make, _) in MODELS.items() if name != "chunks"},
    "shared KV": lambda: _gemma4(num_kv_shared_layers=3),
    "latent attention": lambda: transformers.MiniCPM3Config(
        **(_COMMON | {"num_key_value_heads": 4}),
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_loading_finds(kind):
    outline = find_outline(KINDS[kind](), torch.float32, kind)
    model = make_model(KINDS[kind]())
    bound = bind_model(model, use_kernels=False)
    assert outline.geometry == bound.geometry
    assert outline.calls == bound.calls
    assert outline.num_weights == sum(parameter.numel() for parameter in model.parameters())


def test_bytes_by_how_far_layers_read():
    outline = find_outline(_gemma4(num_kv_shared_layers=3), torch.float32, "gemma4")
    narrow, wide = 2 * (16 + 32) * 4, 2 * (32 + 48) * 4
    assert outline.kept_bytes() == {8: 2 * narrow, None: wide}
    assert outline.geometry.bytes_per_token == 2 * narrow + wide


def test_a_model_of_any_size():
    outline = find_outline(transformers.DeepseekV3Config(num_hidden_layers=4), torch.bfloat16, "large")
    assert outline.num_weights > 1 << 33


def test_code_that_needs_numbers_has_none():
    """Llama 4's mask counts the padding."""
    assert find_outline(MODELS["chunks"][0](), torch.float32, "llama4") is None


def test_what_is_refused_when_loaded_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"^bloom: not implemented: ALiBi"):
        find_outline(transformers.BloomConfig(), torch.float32, "bloom")
    with pytest.raises(UnsupportedModelError, match=r"^t5: not a causal language model"):
        find_outline(transformers.T5Config(), torch.float32, "t5")


def test_a_configuration_of_more_than_any_model_is_refused():
    config = transformers.LlamaConfig(hidden_size=1 << 20, intermediate_size=1 << 24, num_hidden_layers=2)
    with pytest.raises(ModelLoadError, match="describes more than"):
        find_outline(config, torch.float32, "huge")
