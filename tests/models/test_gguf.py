"""GGUF files: their numbers as they are, refusals by name, and a cache that keeps nothing damaged."""

from __future__ import annotations

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
import transformers

from tests.models.gguf_files import LAYERS, shapes, write_gguf
from tests.turns import slow_but
from treeshare.errors import ModelLoadError
from treeshare.models import cache_dir, describe_model, load_model

KINDS = {*(name for name in shapes() if not name.startswith("blk.0.")), "a layer"}
"""One tensor of each kind, and all of a layer."""

Q8, F16, BF16 = (gguf.GGMLQuantizationType[name] for name in ("Q8_0", "F16", "BF16"))


pytestmark = pytest.mark.usefixtures("empty_cache")


def folders():
    """What the cache holds, hidden folders too."""
    place = cache_dir() / "models"
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


def refusal(path):
    """The message of a refusal, which comes again the next time, and leaves nothing."""
    messages = set()
    for _ in range(2):
        with pytest.raises(ModelLoadError) as caught:
            load_model(path, "float32")
        messages.add(str(caught.value))
        assert folders() == []
    (message,) = messages
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", [None, Q8, F16, BF16], ids=["F32", "Q8_0", "F16", "BF16"])
def test_float32_is_what_the_file_holds(tmp_path, kind):
    """Not rounded: transformers' own dequantised values, bit by bit; bfloat16 is those, rounded."""
    options = {} if kind is None else {"dtype": kind}
    path = write_gguf(tmp_path / "x.gguf", **options)
    exact = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    ).state_dict()
    assert any(not torch.equal(value, value.bfloat16().float()) for value in exact.values())
    for dtype in ("float32", "bfloat16"):
        weights = load_model(path, dtype).model.state_dict()
        assert weights.keys() == exact.keys()
        assert all(torch.equal(weights[key], value.to(weights[key].dtype)) for key, value in exact.items())
        assert {str(value.dtype) for value in weights.values()} == {f"torch.{dtype}"}
    assert len(folders()) == 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(None, "float32"), (F16, "float32"), (BF16, "bfloat16"), (Q8, "bfloat16")],
    ids=["F32", "F16", "BF16", "Q8_0"],
)
def test_the_files_own_dtype(tmp_path, kind, expected):
    path = write_gguf(tmp_path / "X.GGUF", **({} if kind is None else {"dtype": kind}))
    loaded = load_model(path)
    assert loaded.dtype == expected
    assert describe_model(path).geometry == loaded.geometry
    assert len(folders()) == 1


@pytest.mark.parametrize("name", slow_but(KINDS, [*shapes(), "a layer"]))
def test_a_lost_tensor_is_named(tmp_path, name):
    """Each of a file's tensors; without a head the embedding is the head, as llama.cpp has it."""
    lost = [key for key in shapes() if key.startswith("blk.1.")] if name == "a layer" else [name]
    path = write_gguf(tmp_path / "x.gguf", lost=lost)
    if name == "output.weight":
        assert load_model(path, "float32").model.config.tie_word_embeddings
        return
    message = refusal(path)
    assert message.startswith(f"model: cannot load x: {len(lost)} tensors are not in the file: ")
    assert min(lost) in message


CHANGED = {
    "rope.scaling.type strange": {"metadata": {"rope.scaling.type": "strange"}},
    "rope_factors_long.weight with": {"more": {"rope_factors_long.weight": np.ones(8)}},
    "rope.scaling.yarn_ext_factor": {"metadata": {"rope.scaling.yarn_ext_factor": 0.5}},
    "attention.sliding_window": {"metadata": {"attention.sliding_window": 16}},
    "attention.causal": {"metadata": {"attention.causal": False}},
    "attn_logit_softcapping": {"metadata": {"attn_logit_softcapping": 30.0}},
    "logit_scale": {"metadata": {"logit_scale": 0.5}},
    "expert_count": {"metadata": {"expert_count": 8}},
    "rope.dimension_count": {"metadata": {"attention.key_length": 16, "rope.dimension_count": 8}},
    "llama.block_count": {"lost": ["llama.block_count"]},
    "llama.attention.head_count": {"lost": ["llama.attention.head_count"]},
}


@pytest.mark.parametrize("named", CHANGED)
def test_what_would_be_left_out_is_refused_by_name(tmp_path, named):
    """Where a wrong size shows itself first, that may be said instead."""
    message = refusal(write_gguf(tmp_path / "x.gguf", **CHANGED[named]))
    assert named in message or (named in ("rope.dimension_count",) and "another shape" in message)


@pytest.mark.parametrize(
    "metadata",
    [
        {"rope.scaling.type": "none"},
        {"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "expert_count": 0},
        {"attention.sliding_window": 128, "attention.key_length": 16, "attention.value_length": 16},
        {"attention.causal": True, "logit_scale": 1.0},
    ],
)
def test_what_changes_nothing_is_no_reason(tmp_path, metadata, capsys):
    whole = load_model(write_gguf(tmp_path / "x.gguf"), "float32").fingerprint()
    assert load_model(write_gguf(tmp_path / "y.gguf", metadata=metadata), "float32").fingerprint() == whole
    assert "not used" not in capsys.readouterr().err


def test_what_is_not_understood_is_said(tmp_path, capsys):
    path = write_gguf(
        tmp_path / "x.gguf", more={f"blk.{LAYERS}.other.weight": np.ones((2, 2))}, metadata={"strange": 3}
    )
    load_model(path, "float32")
    said = capsys.readouterr().err
    assert f"x: 1 tensors of its files are not the model's, and not used: blk.{LAYERS}.other.weight\n" in said
    assert "x: 1 metadata of the file are not used: llama.strange\n" in said


def test_a_damaged_conversion_is_made_anew(tmp_path):
    """A file lost, cut or emptied; a folder as older versions left it."""
    path = write_gguf(tmp_path / "x.gguf")
    whole = load_model(path, "float32").fingerprint()
    (name,) = folders()
    folder = cache_dir() / "models" / name
    old = folder.with_name(name.replace("-v2-float32", "-v1"))
    shutil.copytree(folder, old)
    (old / "config.json").write_text("{}")
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    for damaged, cut in (("model.safetensors", True), ("config.json", False), ("converted.json", True)):
        file = folder / damaged
        kept = file.read_bytes()[:-1]
        file.unlink()
        if cut:
            file.write_bytes(kept)
        assert load_model(path, "float32").fingerprint() == whole
        assert folders() == sorted([name, old.name])
        assert json.loads((folder / "converted.json").read_text())
