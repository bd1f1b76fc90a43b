"""GGUF files of tiny random models, written as llama.cpp's converter writes them."""

from __future__ import annotations

import gguf
import numpy as np
import torch

from tests.models.tiny import VOCAB_SIZE, make_model
from treeshare.models.miniature import spread_weights

_FIELDS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "vocab_size": "vocab_size",
}
_OTHER_NAMES = {"experts.down_proj": "ffn_down_exps.weight", "e_score_correction_bias": "exp_probs_b.bias"}
"""Names in a file that gguf-py's map has for experts by themselves alone."""

_ADD = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string"}

ERROR = 2e-4
"""Largest difference of a float32 log-probability that is rounding."""


def _interleaved(weight, num_heads):
    """Rows of queries or keys in the order in which llama.cpp turns pairs of a Llama's."""
    rows, *rest = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, *rest).swapaxes(1, 2).reshape(weight.shape)


def tensors_of(model, architecture):
    """The tensors of a model under a file's names."""
    config = model.config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    found = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        tensor = value.float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            is_query = "q_proj" in name
            tensor = _interleaved(
                tensor, config.num_attention_heads if is_query else config.num_key_value_heads
            )
        if name.endswith("experts.gate_up_proj"):
            front = f"blk.{name.split('.')[2]}.ffn"
            found[f"{front}_gate_exps.weight"], found[f"{front}_up_exps.weight"] = np.split(tensor, 2, axis=1)
            continue
        if architecture == "gpt2" and ("c_attn.w" in name or "c_proj.w" in name or "c_fc.w" in name):
            tensor = tensor.T
        if name.endswith("shared_expert_gate.weight"):
            tensor = tensor[0]
        if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
            tensor = tensor + 1
        own = next((own for end, own in _OTHER_NAMES.items() if name.endswith(end)), None)
        if own is not None:
            found[f"blk.{name.split('.')[2]}.{own}"] = tensor
            continue
        found[names.get_name(name, try_suffixes=(".weight", ".bias"))] = tensor
    return found


def make_writer(path, architecture, values):
    """A writer with metadata: those of the model by their keys, others by whole ones."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        whole = key if key.startswith(("split.", "general.")) else f"{architecture}.{key}"
        getattr(writer, _ADD[type(value)])(whole, value)
    return writer


def add_vocabulary(writer, size=VOCAB_SIZE):
    """A byte-level vocabulary of ``size`` tokens."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<end>", "ab", *(chr(33 + i) for i in range(size - 2))])
    writer.add_token_types([3] + [1] * (size - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)


def finish(writer, tensors, kind=None):
    """Write tensors, matrices quantised as ``kind`` says, and close the file."""
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):  # blocks as they are, and what they are
            writer.add_tensor(name, tensor[0], raw_dtype=tensor[1])
            continue
        data = np.ascontiguousarray(tensor, dtype=np.float32)
        if kind is not None and data.ndim > 1:
            writer.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def values_of(config, more=None):
    """A model's metadata."""
    values = {
        key: getattr(config, name) for name, key in _FIELDS.items() if getattr(config, name, None) is not None
    }
    return values | {"rope.freq_base": 10000.0} | (more or {})


def write_model(path, config, architecture, *, more=None, extra=None, kind=None):
    """Write a random model of ``config``; returns it as transformers made it, with spread weights.

    Args:
        path: Where.
        config: transformers' configuration.
        architecture: The file's.
        more: Metadata besides.
        extra: Tensors besides.
        kind: Quantisation of matrices.
    """
    model = make_model(config)
    spread_weights(model)
    writer = make_writer(path, architecture, values_of(config, more))
    add_vocabulary(writer)
    finish(writer, tensors_of(model, architecture) | (extra or {}), kind)
    return model


@torch.inference_mode()
def logprobs_of(model, tokens):
    """A model's log-probabilities of each token after the first."""
    logits = model(input_ids=torch.tensor([tokens])).logits[0].float().log_softmax(-1)
    return logits[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
