"""Damaged files: whatever is wrong with whichever, one line that names it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.models.damaged import WEIGHTS, loads_or_refuses, refusal, values_of
from tests.models.gguf_files import write_gguf
from treeshare.errors import ModelLoadError
from treeshare.models import cache_dir, describe_model, load_model
from treeshare.models.construction import bounded

TEXTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


# -- bytes --

BYTES = {
    "empty": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "without its end": lambda whole: whole[:-3],
    "zeros": lambda whole: b"\0" * len(whole),
    "no UTF-8": lambda whole: b'{"a": "\xff"}',
    "UTF-16": lambda whole: whole.decode("latin-1").encode("utf-16"),
    "a mark": lambda whole: b"\xef\xbb\xbf" + whole,
    "null": lambda whole: b"null",
    "a list": lambda whole: b"[1, 2]",
    "a number": lambda whole: b"7",
    "a web page": lambda whole: b"<!DOCTYPE html>\n<html></html>",
    "deep": lambda whole: b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "a long number": lambda whole: b'{"a": ' + b"1" * 5000 + b"}",
    "a pointer": lambda whole: b"version https://git-lfs.github.com/spec/v1\nsize 5\n",
}


@pytest.mark.parametrize("name", [*TEXTS, WEIGHTS])
def test_each_file_as_bytes_of_another_kind(damaged, name):
    content = (damaged / name).read_bytes()
    for change in BYTES.values():
        (damaged / name).write_bytes(change(content))
        message = refusal(damaged)
        assert name in message, message


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_how_deep_json_may_nest_is_the_same_on_every_python(damaged, name):
    """The libraries read what passes; a parser that goes deeper changes nothing."""
    whole = (damaged / name).read_text().rstrip().removesuffix("}")
    for opening, closing in (('{"a":', "}"), ("[", "]")):
        for depth in (299, 300):  # in the file's own object
            inner = opening * depth + "1" + closing * depth
            (damaged / name).write_text(f'{whole}, "deep": {inner}}}')
            if depth < 300:
                load_model(damaged)
            else:
                assert f"{name}: nested too deeply for a model's file; get it again" in refusal(damaged)


@pytest.mark.parametrize("name", [*TEXTS, WEIGHTS, "chat_template.jinja"])
def test_each_file_as_what_is_no_file(damaged, name):
    """None is waited for, or read to an end that never comes."""
    path = damaged / name

    def loop():
        path.symlink_to(path.name)

    makers = [lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"), path.mkdir, loop]
    for make in [*makers, lambda: path.symlink_to("nowhere")]:
        path.unlink() if not path.is_dir() or path.is_symlink() else path.rmdir()
        make()
        for load in (load_model, describe_model):
            assert "config.json" if name == "config.json" else name in refusal(damaged, load)


def test_files_that_are_too_large_or_closed(damaged, monkeypatch):
    os.truncate(damaged / "tokenizer.json", 2 << 30)
    assert "tokenizer.json is larger than 1073741824 bytes" in refusal(damaged)

    def closed(path, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", closed)
    assert refusal(damaged) == f"model: cannot read {damaged}: Permission denied"


# -- values --

VALUES = (
    None,
    True,
    -1,
    0,
    7,
    2.5,
    10**30,
    float("nan"),
    float("inf"),
    "x",
    "\0",
    [],
    [None],
    [[0]],
    {},
    {"a": 1},
)


def test_each_generation_value_of_another_type(damaged):
    """None keeps a library's error; an end that is none is refused by its name."""
    for value in ("x", 2.5, True, [None], [[0]], {"a": 1}):
        (damaged / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        assert "generation_config.json: eos_token_id: got " in refusal(damaged)
    for value in (None, "x", float("nan"), [[0]]):
        (damaged / "generation_config.json").write_text(json.dumps({"temperature": value, "eos_token_id": 1}))
        loads_or_refuses(damaged)


DAMAGE = st.tuples(st.sampled_from(TEXTS), st.randoms(use_true_random=False), st.sampled_from([*VALUES, "-"]))


def mutate(folder, name, draw, value):
    """Set one value anywhere in a file's JSON, or take it away."""
    tree = parent = values_of(folder, name)
    while True:
        keys = list(parent) if isinstance(parent, dict) else range(len(parent))
        key = draw.choice(list(keys))
        if not isinstance(parent[key], dict | list) or not parent[key] or draw.random() < 0.3:
            break
        parent = parent[key]
    if value == "-":
        del parent[key]
    else:
        parent[key] = value
    (folder / name).write_text(json.dumps(tree))


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "derandomize": True}


@pytest.mark.parametrize("number", [12, pytest.param(600, marks=pytest.mark.slow)])
def test_values_anywhere(whole, tmp_path, number):
    @settings(max_examples=number, **QUIET)
    @given(damage=DAMAGE)
    def walk(damage):
        place = tmp_path / "damaged"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(whole, place)
        mutate(place, *damage)
        loads_or_refuses(place)

    walk()


@pytest.mark.slow
def test_each_key_of_the_configuration_with_each_value(damaged):
    whole = values_of(damaged, "config.json")
    for key in whole:
        for value in VALUES:
            (damaged / "config.json").write_text(json.dumps(whole | {key: value}))
            loads_or_refuses(damaged)
        (damaged / "config.json").write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        loads_or_refuses(damaged)


@pytest.mark.slow
def test_every_kind_of_model_without_weights(damaged):
    """Composite ones, too: each type's own defaults, for which the file has nothing."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    for model_type in CONFIG_MAPPING_NAMES:
        (damaged / "config.json").write_text(json.dumps({"model_type": model_type}))
        loads_or_refuses(damaged)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: got 1e+09"),
        ({"text_config": {"n_layer": 10**6}}, "n_layer: got 1e+06"),
        ({"intermediate_size": 10**9}, "describes more than 16777216 numbers"),
        ({"hidden_size": 2**40}, "describes more than 16777216 numbers"),
        ({"num_hidden_layers": 9000}, "describes more than "),
        ({"model_type": "qwen3_vl", "text_config": 5}, "config.json"),
        ({"transformers_weights": "../model.safetensors"}, "transformers_weights: got ../model.safetensors"),
        ({"transformers_weights": "pytorch_model.bin"}, "transformers_weights: got pytorch_model.bin"),
        ({"transformers_weights": 7}, "transformers_weights: got 7"),
        ({"head_dim": 0}, "config"),
    ],
)
def test_values_that_are_refused_by_name(damaged, values, named):
    (damaged / "config.json").write_text(json.dumps(values_of(damaged, "config.json") | values))
    assert named in refusal(damaged)


def test_what_is_built_is_bounded():
    """By this thread's modules and numbers; what it had counted is over with it."""
    with (
        bounded("m", num_tensors=1, num_elements=10),
        pytest.raises(ModelLoadError, match="16777216 numbers"),
    ):
        torch.nn.Linear(5000, 5000, device="meta")
    with (
        bounded("m", num_tensors=1, num_elements=10),
        pytest.raises(ModelLoadError, match="more than 3030 modules, its files hold 10 numbers in 1 tensors"),
    ):
        torch.nn.ModuleList(torch.nn.Identity() for _ in range(3031))
    torch.nn.Linear(5000, 5000, device="meta")


# -- weights --


@pytest.mark.parametrize(
    "places",
    [
        None, [], {}, {"a": None}, {"a": 5}, {"a": "."}, {"a": ".."}, {"a": "config.json"},
        {"a": "/etc/hostname"},
        {"a": "../x.safetensors"}, {"a": "pytorch_model.bin"}, {"a": "x\0.safetensors"}, {"a": ["x"]},
    ],
)  # fmt: skip
def test_an_index_names_safetensors_beside_it_alone(damaged, places):
    torch.save(load_file(damaged / WEIGHTS), damaged / "pytorch_model.bin")
    (damaged / WEIGHTS).unlink()
    (damaged / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert "expected names of .safetensors files beside it" in refusal(damaged)


def test_weights_of_other_kinds(damaged):
    whole = load_file(damaged / WEIGHTS)
    for change in (
        lambda w: w.flatten(),
        lambda w: w[:0],
        lambda w: w.to(torch.int64),
        lambda w: w.to(torch.bool),
        lambda w: w.to(torch.complex64),
        lambda w: w * float("nan"),
    ):
        name = max(whole, key=lambda name: whole[name].ndim)
        save_file(
            whole | {name: change(whole[name]).contiguous()}, damaged / WEIGHTS, metadata={"format": "pt"}
        )
        loads_or_refuses(damaged)


# -- GGUF files --


@pytest.mark.parametrize("layers", [0, 10**9, "2"])
def test_layers_that_a_gguf_does_not_have(tmp_path, monkeypatch, layers):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    message = refusal(write_gguf(tmp_path / "x.gguf", metadata={"block_count": layers}))
    assert f"llama.block_count: got {layers}, expected a number of layers for its 21 tensors" in message


GGUF_DAMAGE = st.lists(st.tuples(st.floats(0, 0.99), st.integers(0, 255)), min_size=1, max_size=4)


@pytest.mark.parametrize("number", [8, pytest.param(300, marks=pytest.mark.slow)])
def test_bytes_of_a_gguf(tmp_path, monkeypatch, number):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "x.gguf")
    whole = path.read_bytes()

    @settings(max_examples=number, **QUIET)
    @given(damage=GGUF_DAMAGE)
    def walk(damage):
        content = bytearray(whole)
        for place, byte in damage:
            content[int(place * 1600)] = byte  # of header and metadata
        path.write_bytes(content)
        loads_or_refuses(path)

    walk()


def test_no_room_for_a_conversion(tmp_path, monkeypatch):
    """The file is whole: the message names the cache, and nothing stays there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "x.gguf")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        message = refusal(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert message.startswith(f"model cache: cannot write {cache_dir()}/models: ")
    assert message.endswith("; make room there, or set XDG_CACHE_HOME to another folder")
    assert list((cache_dir() / "models").iterdir()) == []
    assert load_model(path)
