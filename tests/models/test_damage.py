"""Damaged models: whatever is wrong with whichever file, one line that names it, and nothing is run."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.evals.tiny_text import save_text_model
from tests.models.gguf_files import write_gguf
from treeshare import LLM, failures
from treeshare.errors import ConfigError, ModelLoadError, TreeshareError
from treeshare.failures import is_failure, refusing
from treeshare.models import cache_dir, describe_model, load_model
from treeshare.models.construction import bounded

TEXTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
WEIGHTS = "model.safetensors"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model's folder with every file that is read of one."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    save_text_model(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert set(TEXTS) <= set(os.listdir(folder))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(whole, tmp_path / "model")


def refusal(model, load=load_model):
    """The message of a refusal."""
    with pytest.raises(TreeshareError) as caught:
        load(model)
    message = str(caught.value)
    assert message
    assert message.isprintable()
    return message


def loads_or_refuses(model):
    """Both are right; what may not come is a library's error."""
    for load in (describe_model, load_model):
        try:
            load(model)
        except TreeshareError as error:
            message = str(error)
        else:
            message = "loaded"
        assert message.isprintable()


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
def test_each_file_as_bytes_of_another_kind(folder, name):
    content = (folder / name).read_bytes()
    for change in BYTES.values():
        (folder / name).write_bytes(change(content))
        message = refusal(folder)
        assert name in message, message


@pytest.mark.parametrize("name", [*TEXTS, WEIGHTS, "chat_template.jinja"])
def test_each_file_as_what_is_no_file(folder, name):
    """None is waited for, or read to an end that never comes."""
    path = folder / name

    def loop():
        path.symlink_to(path.name)

    makers = [lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"), path.mkdir, loop]
    for make in [*makers, lambda: path.symlink_to("nowhere")]:
        path.unlink() if not path.is_dir() or path.is_symlink() else path.rmdir()
        make()
        for load in (load_model, describe_model):
            assert "config.json" if name == "config.json" else name in refusal(folder, load)


def test_files_that_are_too_large_or_closed(folder, monkeypatch):
    os.truncate(folder / "tokenizer.json", 2 << 30)
    assert "tokenizer.json is larger than 1073741824 bytes" in refusal(folder)

    def closed(path, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", closed)
    assert refusal(folder) == f"model: cannot read {folder}: Permission denied"


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


def values_of(folder, name):
    return json.loads((folder / name).read_text())


def test_each_generation_value_of_another_type(folder):
    """None keeps a library's error; an end that is none is refused by its name."""
    for value in ("x", 2.5, True, [None], [[0]], {"a": 1}):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        assert "generation_config.json: eos_token_id: got " in refusal(folder)
    for value in VALUES:
        (folder / "generation_config.json").write_text(json.dumps({"temperature": value, "eos_token_id": 1}))
        loads_or_refuses(folder)


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


def walk(folder, tmp_path, damage):
    place = tmp_path / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place)
    mutate(place, *damage)
    loads_or_refuses(place)


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "derandomize": True}


@settings(max_examples=12, **QUIET)
@given(damage=DAMAGE)
def test_some_values_anywhere(whole, tmp_path, damage):
    walk(whole, tmp_path, damage)


@pytest.mark.slow
@settings(max_examples=600, **QUIET)
@given(damage=DAMAGE)
def test_many_values_anywhere(whole, tmp_path, damage):
    walk(whole, tmp_path, damage)


@pytest.mark.slow
def test_each_key_of_the_configuration_with_each_value(folder):
    whole = values_of(folder, "config.json")
    for key in whole:
        for value in VALUES:
            (folder / "config.json").write_text(json.dumps(whole | {key: value}))
            loads_or_refuses(folder)
        (folder / "config.json").write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        loads_or_refuses(folder)


@pytest.mark.slow
def test_every_kind_of_model_without_weights(folder):
    """Composite ones, too: each type's own defaults, for which the file has nothing."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    for model_type in CONFIG_MAPPING_NAMES:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        loads_or_refuses(folder)


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
def test_values_that_are_refused_by_name(folder, values, named):
    (folder / "config.json").write_text(json.dumps(values_of(folder, "config.json") | values))
    assert named in refusal(folder)


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
def test_an_index_names_safetensors_beside_it_alone(folder, places):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert "expected names of .safetensors files beside it" in refusal(folder)


def test_weights_of_other_kinds(folder):
    whole = load_file(folder / WEIGHTS)
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
            whole | {name: change(whole[name]).contiguous()}, folder / WEIGHTS, metadata={"format": "pt"}
        )
        loads_or_refuses(folder)


# -- tokenizers --

PANICS = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


def tokenizer_with(folder, **values):
    (folder / "tokenizer.json").write_text(json.dumps(values_of(folder, "tokenizer.json") | values))


def test_a_library_that_panics(folder):
    """In Rust: an exception that is no ``Exception``."""
    tokenizer_with(folder, normalizer=PANICS)
    message = refusal(folder)
    assert message.startswith(f"tokenizer: cannot load it from {folder}: tokenizer.json: PanicException: ")
    piece = {"SpecialToken": {"id": "[X]", "type_id": 0}}
    tokenizer_with(
        folder,
        normalizer=None,
        post_processor={"type": "TemplateProcessing", "single": [piece], "pair": [], "special_tokens": {}},
    )
    assert "tokenizer.json: PanicException: " in refusal(folder)


def test_a_text_that_cannot_be_encoded(folder):
    """Is the request's fault: the others go on, and tokens that it has are text."""
    tokenizer_with(folder, model={"type": "WordLevel", "vocab": {"</s>": 1, "yes": 3}, "unk_token": "?"})
    llm = LLM(folder, dtype="float32")
    for call in (llm.encode, llm.generate, describe_model(folder).encode):
        with pytest.raises(
            ConfigError, match=r"^prompt: the model's tokenizer cannot encode 'no\\n': Exception"
        ):
            call("no\n")
    assert llm.encode("yes") == [3]
    assert llm.generate("yes", use_tqdm=False)[0].outputs


def test_more_tokens_than_the_model_knows(folder, capsys):
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    known = values_of(folder, "tokenizer.json")["added_tokens"]
    tokenizer_with(
        folder, added_tokens=[*known, *({"id": 9000 + i, "content": f"<{i}>"} | added for i in range(9000))]
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 10**6, -1, 10**30]}))
    llm = LLM(folder, dtype="float32")
    said = capsys.readouterr().err
    assert "tokens, the model " in said
    assert "end-of-sequence tokens that the model does not know: 1000000, 1" in said
    assert 1 in llm.loaded.eos_token_ids
    assert max(llm.loaded.eos_token_ids) < llm.vocab_size
    with pytest.raises(ConfigError, match=r"^prompts\[0\]: got \d+, expected token ids in \[0, "):
        llm.generate("<8999>", use_tqdm=False)


def test_the_mark_before_a_template_is_in_no_prompt(folder):
    """Of a file of its own, of an additional one, and inside the tokenizer's configuration."""
    marked = "\ufeff" + TEMPLATE
    settings_file = folder / "tokenizer_config.json"

    def prompt():
        tokenizer = load_model(folder).tokenizer
        text = tokenizer.apply_chat_template([{"role": "user", "content": "a\u2028b"}], tokenize=False)
        assert text == "a\u2028b"
        return tokenizer

    (folder / "chat_template.jinja").write_text(marked)
    prompt()
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "other.jinja").write_text(marked)
    assert prompt().chat_template == {"default": TEMPLATE, "other": TEMPLATE}
    shutil.rmtree(folder / "additional_chat_templates")
    (folder / "chat_template.jinja").unlink()
    for template in (marked, [{"name": "default", "template": marked}]):
        settings_file.write_text(
            json.dumps(values_of(folder, settings_file.name) | {"chat_template": template})
        )
        prompt()
    for template in (5, [5], {"default": 5}):
        settings_file.write_text(
            json.dumps(values_of(folder, settings_file.name) | {"chat_template": template})
        )
        assert "tokenizer" in refusal(folder)
    (folder / "chat_template.jinja").write_bytes(TEMPLATE.encode("utf-16"))
    assert "chat_template.jinja is in UTF-16" in refusal(folder)


# -- names --


@pytest.mark.parametrize(
    "name",
    ["", " ", "\n", "a\0b", "x" * 5000, "~no-such-user/x", "a\nb/", "\udcff/x/y", "./\u2028", "x\0.gguf"],
)
def test_names_of_nothing(tmp_path, monkeypatch, whole, name):
    """Nor of the current folder, which is a model here."""
    monkeypatch.chdir(whole)
    for load in (load_model, describe_model):
        assert refusal(name, load).startswith("model: ")


@pytest.mark.parametrize("name", [None, 5, b"model", ["model"]])
def test_names_that_are_no_text(name):
    assert refusal(name).startswith("model: got ")


@pytest.mark.parametrize("ending", ["", ".gguf"])
def test_links_in_a_circle_and_to_nowhere(tmp_path, ending):
    for target, reason in (
        ("nowhere", "No such file"),
        (f"link{ending}", "Too many levels of symbolic links"),
    ):
        path = tmp_path / f"link{ending}"
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        assert reason in refusal(path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_a_gguf_that_is_no_file(tmp_path, make):
    make(tmp_path / "x.gguf")
    assert "x.gguf: " in refusal(tmp_path / "x.gguf")


def test_a_folder_with_a_name_of_several_lines(folder):
    other = folder.rename(folder.with_name("a\nb\x1b[31m"))
    assert load_model(other)
    (other / WEIGHTS).write_bytes(b"")
    refusal(other)


# -- code from outside --


def test_no_code_is_run_or_fetched(folder, tmp_path):
    """``auto_map`` of each file, and an attention that names a repository."""
    (folder / "code.py").write_text("raise SystemExit('this must not run')")
    shutil.copytree(folder, folder / "custom_generate")
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit('this must not run')")
    auto = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoModel"), "code.X")
    config = values_of(folder, "config.json")
    for more in (
        {"auto_map": auto},
        {"auto_map": 5},
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation": "somebody/kernel", "experts_implementation": "somebody/kernel"},
        {"model_type": "no-such", "auto_map": auto},
    ):
        (folder / "config.json").write_text(json.dumps(config | more))
        loads_or_refuses(folder)
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "somebody/kernel"}))
    assert load_model(folder)
    settings_file = folder / "tokenizer_config.json"
    tokens = {"auto_map": {"AutoTokenizer": ["code.X", "code.X"]}}
    settings_file.write_text(json.dumps(values_of(folder, settings_file.name) | tokens))
    loads_or_refuses(folder)


def test_what_lies_beside_a_gguf_is_not_its(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / ("x" * 240 + ".gguf"))
    for name in ("config.json", "tokenizer_config.json", "adapter_config.json", "generation_config.json"):
        (tmp_path / name).write_text("{")
    assert load_model(path, "float32").tokenizer.encode("ab")


# -- GGUF files --


@pytest.mark.parametrize("layers", [0, 10**9, "2"])
def test_layers_that_a_gguf_does_not_have(tmp_path, monkeypatch, layers):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    message = refusal(write_gguf(tmp_path / "x.gguf", metadata={"block_count": layers}))
    assert f"llama.block_count: got {layers}, expected a number of layers for its 21 tensors" in message


GGUF_DAMAGE = st.lists(st.tuples(st.floats(0, 0.99), st.integers(0, 255)), min_size=1, max_size=4)


@settings(max_examples=8, **QUIET)
@given(damage=GGUF_DAMAGE)
def test_some_bytes_of_a_gguf(tmp_path, monkeypatch, damage):
    walk_gguf(tmp_path, monkeypatch, damage)


@pytest.mark.slow
@settings(max_examples=300, **QUIET)
@given(damage=GGUF_DAMAGE)
def test_many_bytes_of_a_gguf(tmp_path, monkeypatch, damage):
    walk_gguf(tmp_path, monkeypatch, damage)


def walk_gguf(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "x.gguf")
    content = bytearray(path.read_bytes())
    for place, byte in damage:
        content[int(place * 1600)] = byte  # of header and metadata
    path.write_bytes(content)
    loads_or_refuses(path)


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


# -- what is not swallowed --


def test_interrupts_and_own_assertions_pass(folder, monkeypatch):
    for error in (KeyboardInterrupt(), SystemExit(3), GeneratorExit()):
        assert not is_failure(error)
        with pytest.raises(type(error)), refusing("place"):
            raise error
    monkeypatch.setattr(failures, "error_line", lambda error: str(error))
    for own, expected in ((False, ModelLoadError), (True, AssertionError)):
        space = {"__name__": "treeshare.models.somewhere" if own else "torch.somewhere"}
        exec("def fail():\n    assert False, 'no'", space)
        with pytest.raises(expected), refusing("place"):
            space["fail"]()
    with pytest.raises(ConfigError), refusing("place"):
        raise ConfigError("as it is")

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    for place in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"):
        with monkeypatch.context() as patch:
            patch.setattr(f"transformers.{place}.from_pretrained", interrupted)
            with pytest.raises(KeyboardInterrupt):
                load_model(folder)


@pytest.mark.slow
def test_the_command_line_says_one_line(folder):
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": null}')
    command = [sys.executable, "-m", "treeshare.cli", "verify", "--model", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"treeshare: model: cannot load {folder}: config.json: ")
