"""Small GGUF files: a Llama with a tokenizer, whole or with something wrong."""

from __future__ import annotations

import gguf
import numpy as np

from tests.models.gguf_models import finish

TOKENS = ["<end>", *map(chr, range(97, 123)), "ab", "cd"]
WIDTH, HEADS, KV_HEADS, LAYERS = 64, 4, 2, 2


def shapes(*, tied=False):
    """Names and shapes of the tensors of a whole file."""
    found = {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    if not tied:
        found["output.weight"] = (len(TOKENS), WIDTH)
    kv = WIDTH * KV_HEADS // HEADS
    for layer in range(LAYERS):
        found |= {
            f"blk.{layer}.{part}.weight": shape
            for part, shape in {
                "attn_norm": (WIDTH,),
                "ffn_norm": (WIDTH,),
                "attn_q": (WIDTH, WIDTH),
                "attn_k": (kv, WIDTH),
                "attn_v": (kv, WIDTH),
                "attn_output": (WIDTH, WIDTH),
                "ffn_gate": (96, WIDTH),
                "ffn_up": (96, WIDTH),
                "ffn_down": (WIDTH, 96),
            }.items()
        }
    return found


def write_gguf(path, *, tied=False, lost=(), more=None, metadata=None, dtype=gguf.GGMLQuantizationType.F32):
    """Write a file.

    Args:
        path: Where.
        tied: Without a head of its own.
        lost: Names of tensors, and keys of metadata, that are left out.
        more: Tensors besides, by name.
        metadata: Keys behind ``llama.`` (or whole ones, with ``split.``) and values besides.
        dtype: Of its matrices.
    """
    writer = gguf.GGUFWriter(path, "llama")
    values = {
        "llama.context_length": 128,
        "llama.embedding_length": WIDTH,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.vocab_size": len(TOKENS),
    } | {
        key if key.startswith("split.") else f"llama.{key}": value for key, value in (metadata or {}).items()
    }
    for key, value in values.items():
        if key not in lost:
            kinds = {
                bool: writer.add_bool,
                int: writer.add_uint32,
                float: writer.add_float32,
                str: writer.add_string,
            }
            kinds[type(value)](key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(["a b", "c d"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    draws = np.random.default_rng(5)
    tensors = {
        name: draws.normal(float("norm" in name), 0.2, shape) for name, shape in shapes(tied=tied).items()
    }
    kept = {name: tensor for name, tensor in (tensors | (more or {})).items() if name not in lost}
    finish(writer, kept, None if dtype == gguf.GGMLQuantizationType.F32 else dtype)
    return path
