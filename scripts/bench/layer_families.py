"""Model families whose layers differ in what they are made of, as configurations of equal sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, PretrainedConfig

README_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox", "olmo2")

_PLAIN = {"is_decoder": True, "sliding_window": None}
"""What some families need to be causal, and without a window."""

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "gpt2": {},
    "gpt_neox": {"is_ungated": True},
    "olmo2": {},
    "apertus": {"is_ungated": True},
    "arcee": {"is_ungated": True},
    "bert": {"is_ungated": True},
    "bitnet": {},
    "codegen": {"rotary_dim": 32, "num_attention_heads": 12},
    "cohere": {},
    "ctrl": {"is_ungated": True},
    "ernie4_5": {},
    "gemma": {},
    "glm": {},
    "glm4": {},
    "gpt_bigcode": {},
    "gptj": {"rotary_dim": 32},
    "granite": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hyperclovax": {},
    "jais2": {"is_ungated": True},
    "ministral3": {},
    "nanochat": {"is_ungated": True},
    "olmo": {},
    "opt": {"is_ungated": True},
    "persimmon": {"is_ungated": True},
    "phi": {"is_ungated": True},
    "smollm3": {},
    "starcoder2": {"is_ungated": True},
}
"""The README's families and one more for each other recipe among those that load, with what they need."""


@dataclass(frozen=True)
class Sizes:
    """Sizes that all families are given.

    Attributes:
        hidden: Width of hidden states.
        heads: Query heads.
        kv_heads: Key and value heads, where a family groups them.
        inner: Width inside a gated MLP; one without a gate has half as much again, and so as many weights.
        layers: Their number.
        vocabulary: Tokens.
        positions: Maximum length.
    """

    hidden: int = 576
    heads: int = 9
    kv_heads: int = 3
    inner: int = 1536
    layers: int = 30
    vocabulary: int = 49152
    positions: int = 4096


def make_config(family: str, sizes: Sizes) -> PretrainedConfig:
    """A configuration of ``family``, as near to ``sizes`` as it can be."""
    own = dict(FAMILIES.get(family, {}))
    inner = sizes.inner * 3 // 2 if own.pop("is_ungated", False) else sizes.inner
    heads = own.get("num_attention_heads", sizes.heads) if sizes.heads == 9 else sizes.heads
    rotary_dim = min(own.pop("rotary_dim", 64), sizes.hidden // heads // 2)
    fields: dict[str, Any] = {
        "hidden_size": sizes.hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.hidden // heads,
        "intermediate_size": inner,
        "num_hidden_layers": sizes.layers,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": sizes.positions,
        "rotary_dim": rotary_dim,
        "ffn_dim": inner,
        "dff": inner,
        "word_embed_proj_dim": sizes.hidden,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "initializer_range": 0.2 if sizes.hidden < 256 else 0.02,
    }
    try:
        config = AutoConfig.for_model(family, **fields)
    except Exception:  # a family with as many KV heads as heads may have no such field
        fields.pop("num_key_value_heads")
        config = AutoConfig.for_model(family, **fields)
    for name, value in _PLAIN.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return config
