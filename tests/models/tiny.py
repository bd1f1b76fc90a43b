"""Tiny random models of every supported architecture, built from configurations."""

from __future__ import annotations

import functools

import torch
import transformers

VOCAB_SIZE = 160
_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_GPT2 = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}

CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**_COMMON),
    "qwen2": lambda: transformers.Qwen2Config(**_COMMON),
    "qwen3": lambda: transformers.Qwen3Config(**_COMMON, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**_COMMON, sliding_window=None),
    "phi3": lambda: transformers.Phi3Config(**_COMMON),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        **{key: value for key, value in _COMMON.items() if key != "num_key_value_heads"}
    ),
    "gpt2": lambda: transformers.GPT2Config(**_GPT2),
    "olmo2": lambda: transformers.Olmo2Config(**_COMMON),
}
ARCHITECTURES = sorted(CONFIGS)


def make_model(config, dtype=torch.float32, seed=0):
    """A random model of ``config``, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@functools.cache
def saved_model(architecture, folder):
    """The folder of a saved tiny model, without a tokenizer."""
    path = folder / architecture
    make_model(CONFIGS[architecture]()).save_pretrained(path)
    return path


def smallest_model_of(tokenizer, num_more=0):
    """A random model of a tokenizer's vocabulary, and of ``num_more`` tokens that it does not know."""
    return make_model(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer) + num_more,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
    )
