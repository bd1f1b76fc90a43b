"""The configurations of ``model_table.py``: what classes' defaults lack, and variants with a trap."""

from __future__ import annotations

from typing import Any

_ENCODERS = (
    "bert",
    "bert-generation",
    "big_bird",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "megatron-bert",
    "reformer",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Classes that decode if their configuration says so."""

_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 4096}
_LLAMA3 = _YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def _longrope(count: int) -> dict[str, Any]:
    """Parameters with factors for ``count`` angles."""
    return {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 8.0,
        "original_max_position_embeddings": 4096,
        "short_factor": [1.0 + 0.01 * i for i in range(count)],
        "long_factor": [2.0 + 0.3 * i for i in range(count)],
    }


_WINDOW = {"use_sliding_window": True, "sliding_window": 1024, "max_window_layers": 1}

FIELDS: dict[str, dict[str, Any]] = {
    **{name: {"is_decoder": True} for name in _ENCODERS},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "ministral": {"head_dim": 128},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 3,
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "dory": {"num_hidden_layers": 8, "n_input_layers": 2, "n_recurrent_layers": 4, "n_output_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
        "layer_types": ["full_attention", "sliding_attention"] * 20,
    },
}
"""What a class's default configuration lacks."""

VARIANTS: dict[str, dict[str, Any]] = {
    "qwen2, windows": _WINDOW,
    "qwen3, windows": _WINDOW,
    "qwen2_moe, windows": _WINDOW,
    "qwen3_moe, windows": {"use_sliding_window": True, "sliding_window": 1024},
    "mixtral, window": {"sliding_window": 1024},
    "phimoe, window": {"sliding_window": 1024},
    "starcoder2, window": {"sliding_window": 1024},
    "phi3, window": {"sliding_window": 1024},
    "doge, window": {"sliding_window": 1024},
    "mistral, window of 1": {"sliding_window": 1},
    "mistral, no window": {"sliding_window": None},
    "moshi, window": {"sliding_window": 1000},
    "llama, yarn": {"rope_parameters": _YARN},
    "llama, llama3": {"rope_parameters": _LLAMA3},
    "llama, linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "llama, dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    "llama, longrope": {
        "max_position_embeddings": 32768,
        "rope_parameters": _longrope(64),
    },
    "phi, llama3, partial": {"rope_parameters": _LLAMA3 | {"partial_rotary_factor": 0.5}},
    "phi3, longrope": {
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_parameters": _longrope(48),
    },
    "phimoe, longrope": {
        "max_position_embeddings": 131072,
        "rope_parameters": _longrope(64) | {"short_mscale": 1.1, "long_mscale": 1.3},
    },
    "gemma3_text, ropes": {
        "rope_parameters": {
            "sliding_attention": _ROPE,
            "full_attention": _ROPE | {"rope_type": "linear", "factor": 8.0},
        },
    },
    "llama, odd heads": {"hidden_size": 60, "num_attention_heads": 3, "num_key_value_heads": 1},
    "gemma, bidirectional": {"use_bidirectional_attention": True},
    "gemma2, narrow cap": {"attn_logit_softcapping": 2.0},
    "gemma4_text, shared KV": {"num_kv_shared_layers": 12},
    "gemma4_text, K = V": {"attention_k_eq_v": True},
    "gemma4_text, experts": {
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 96,
    },
    "llama4_text, early tuning": {"floor_scale": 20, "attn_scale": 2.0},
    "deepseek_v3, yarn": {"rope_parameters": _YARN},
    "deepseek_v3, no q_lora": {"q_lora_rank": None},
    "falcon, new decoder": {
        "new_decoder_architecture": True,
        "num_kv_heads": 8,
        "num_attention_heads": 64,
        "hidden_size": 4096,
    },
    "falcon, ALiBi": {"alibi": True},
    "stablelm, parallel": {"use_parallel_residual": True, "qk_layernorm": True},
    "gpt2, cross-attention": {"add_cross_attention": True},
    "bert, an encoder": {"is_decoder": False},
}
"""Configurations with a trap, by ``CLASS, WHAT``."""

VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 16,
}
_QWEN = {
    "depth": 1,
    "embed_dim": 32,
    "hidden_size": 64,
    "num_heads": 2,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [0],
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 16,
}

_SECTIONS = {"rope_parameters": _ROPE | {"mrope_section": [16, 24, 24]}}

WRAPPERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "aria": (VISION, {}),
    "gemma3": (VISION | {"vision_use_head": False}, {}),
    "gemma4": (VISION | {"num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 16}, {}),
    "gemma4_unified": (VISION, {}),
    "got_ocr2": (
        VISION | {"output_channels": 16, "window_size": 2, "global_attn_indexes": [0], "mlp_dim": 48},
        {},
    ),
    "idefics3": (VISION, {}),
    "internvl": (VISION | {"image_size": [32, 32], "patch_size": [16, 16]}, {}),
    "llava": (VISION, {}),
    "llava_next": (VISION, {}),
    "llava_onevision": (VISION | {"vision_use_head": False}, {}),
    "mistral3": (VISION, {}),
    "qwen2_5_vl": (_QWEN, _SECTIONS),
    "qwen2_vl": (_QWEN, _SECTIONS),
    "qwen3_vl": (_QWEN, {}),
    "qwen3_vl_moe": (_QWEN, {}),
    "smolvlm": (VISION, {}),
}
"""Multimodal kinds: a small configuration of images, and what the text model's default lacks."""

MOST_USED = (
    "llama",
    "qwen2, windows",
    "qwen2_moe, windows",
    "qwen3",
    "qwen3_moe",
    "mistral",
    "mixtral",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "gpt_oss",
    "deepseek_v3",
)
"""Those that a quick test compares."""
