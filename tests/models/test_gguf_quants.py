"""GGUF files of every kind of numbers that gguf-py dequantises, against its numbers."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf.quants import dequantize

from tests.models.gguf_models import (
    ERROR,
    add_vocabulary,
    finish,
    logprobs_of,
    make_writer,
    tensors_of,
    values_of,
)
from tests.models.tiny import _COMMON, make_model
from treeshare import LLM
from treeshare.errors import ModelLoadError
from treeshare.models import load_model
from treeshare.models.loading import outline_model
from treeshare.models.miniature import spread_weights

KINDS = gguf.GGMLQuantizationType

_TOKENS = torch.randint(2, 160, (60,), generator=torch.Generator().manual_seed(3)).tolist()

HALVES = {
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,),
    "TQ2_0": (64,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,),
    "IQ1_S": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
"""Where in a block its scales in float16 are; any other bits are a valid block."""

QUANTISED = ("BF16", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Kinds whose blocks gguf-py makes from numbers; the others' are drawn."""

MIXES = {
    "Q3_K_M": {"attn_v": "Q5_K", "ffn_down": "Q4_K", "attn_output": "Q4_K", "output": "Q6_K", "": "Q3_K"},
    "Q4_K_M": {"attn_v": "Q6_K", "ffn_down": "Q6_K", "output": "Q6_K", "": "Q4_K"},
    "IQ3_M": {"attn_v": "Q4_K", "ffn_down": "IQ3_S", "output": "Q6_K", "token_embd": "Q3_K", "": "IQ3_XXS"},
}
"""What llama.cpp's quantiser makes of a model under these names, the parts that matter."""


def drawn(kind, shape, rng, size=1e-3):
    """Random blocks of ``shape``, rows of 256 numbers, with scales of about ``size``."""
    block, num_bytes = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    rows, columns = shape
    blocks = rng.integers(0, 256, (rows * columns // block, num_bytes), dtype=np.uint8)
    scales = (rng.uniform(0.5, 2.0, len(blocks)) * size).astype(np.float16)
    for place in HALVES.get(kind, ()):
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    if kind == "IQ1_M":  # its scale is in four pieces, above four other numbers
        words = blocks[:, 48:56].copy().view(np.uint16)
        for piece in range(4):
            words[:, piece] = words[:, piece] & 0x0FFF | ((scales.view(np.uint16) >> (4 * piece)) & 15) << 12
        blocks[:, 48:56] = words.view(np.uint8)
    elif kind == "MXFP4":
        blocks[:, 0] = 124  # an exponent
    elif kind == "NVFP4":
        blocks[:, :4] = rng.integers(0x18, 0x20, (len(blocks), 4))
    return blocks.reshape(rows, columns // block * num_bytes)


def _size(kind):
    """The scales with which a kind's numbers are of the size of weights."""
    numbers = dequantize(drawn(kind, (64, 256), np.random.default_rng(1)), KINDS[kind])
    return 1e-3 * 0.05 / float(numbers.std())


def as_stored(kind, tensor, rng):
    """A matrix's blocks of a kind, and their numbers by gguf-py."""
    if kind in QUANTISED:
        blocks = gguf.quantize(np.ascontiguousarray(tensor, np.float32), KINDS[kind])
    else:
        blocks = drawn(kind, tensor.shape, rng, _size(kind))
    numbers = dequantize(blocks, KINDS[kind]).reshape(tensor.shape)
    assert 0.01 < numbers.std() < 0.5
    return (blocks, KINDS[kind]), numbers


def _paired(weight, num_heads):
    """A query's or key's rows as transformers has them, from llama.cpp's order of a Llama's."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(path, mix, *, tied=False):
    """A file whose matrices have the kinds of ``mix`` by a part of their names; its model by gguf-py."""
    fields = {**_COMMON, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**fields, tie_word_embeddings=tied)
    model = make_model(config)
    spread_weights(model)
    rng = np.random.default_rng(7)
    tensors = tensors_of(model, "llama")
    names = {}
    for name, tensor in tensors.items():
        names[name] = tensor
        if tensor.ndim > 1:
            kind = next(found for part, found in mix.items() if part in name)
            tensors[name], names[name] = as_stored(kind, tensor, rng)
    writer = make_writer(path, "llama", values_of(config, {"rope.dimension_count": config.head_dim}))
    add_vocabulary(writer)
    finish(writer, tensors)
    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    state = model.state_dict()
    for name in state:
        if name == "lm_head.weight" and tied:
            continue
        numbers = names[mapping.get_name(name, try_suffixes=(".weight", ".bias"))]
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            numbers = _paired(numbers, heads) if part in name else numbers
        state[name].copy_(torch.from_numpy(np.array(numbers, np.float32)))
    return model


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def error(path, model):
    llm = LLM(path, dtype="float32", kv_budget_bytes=1 << 24)
    (score,) = llm.score([(_TOKENS[:1], _TOKENS[1:])], use_tqdm=False)
    return float((torch.tensor(score.logprobs) - logprobs_of(model, _TOKENS)).abs().max())


ALL = sorted({*QUANTISED, *HALVES, "IQ1_M", "MXFP4", "NVFP4"})
FIRST = "Q4_K_M"


@pytest.mark.parametrize(
    "name", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in [*ALL, *MIXES] if name != FIRST)]
)
def test_scores_are_those_of_the_dequantised_tensors(tmp_path, name):
    model = write(tmp_path / "x.gguf", MIXES.get(name, {"": name}))
    assert error(tmp_path / "x.gguf", model) <= ERROR


@pytest.mark.parametrize("kind", ["Q8_K", "Q1_0", "I8"])
def test_other_kinds_are_refused_by_name(tmp_path, kind):
    block, size = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    config = transformers.LlamaConfig(**{**_COMMON, "hidden_size": 256, "num_hidden_layers": 1})
    writer = make_writer(tmp_path / "x.gguf", "llama", values_of(config))
    add_vocabulary(writer)
    blocks = np.zeros((96, 256 // block * size), np.uint8)
    finish(writer, tensors_of(make_model(config), "llama") | {"blk.0.ffn_up.weight": (blocks, KINDS[kind])})
    for read in (load_model, outline_model):
        with pytest.raises(ModelLoadError, match=f"not implemented: numbers of the kind {kind}; use a file"):
            read(tmp_path / "x.gguf", "float32")


@pytest.mark.slow
def test_a_tied_head_is_the_quantised_table(tmp_path):
    model = write(tmp_path / "x.gguf", {"": "Q6_K"}, tied=True)
    assert error(tmp_path / "x.gguf", model) <= ERROR
