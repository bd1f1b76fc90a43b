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
