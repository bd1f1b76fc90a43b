"""Models that somebody made to do harm, names of nothing, tokenizers that fail; and what is not swallowed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.models.damaged import TEMPLATE, WEIGHTS, loads_or_refuses, refusal, set_values, values_of
from tests.models.gguf_files import write_gguf
from treeshare import LLM, failures
from treeshare.errors import ConfigError, ModelLoadError
from treeshare.failures import is_failure, refusing
from treeshare.models import describe_model, load_model

# -- tokenizers --

PANICS = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


def tokenizer_with(folder, **values):
    set_values(folder, "tokenizer.json", **values)


def test_a_library_that_panics(damaged):
    """In Rust: an exception that is no ``Exception``."""
    tokenizer_with(damaged, normalizer=PANICS)
    message = refusal(damaged)
    assert message.startswith(f"tokenizer: cannot load it from {damaged}: tokenizer.json: PanicException: ")
    piece = {"SpecialToken": {"id": "[X]", "type_id": 0}}
    tokenizer_with(
        damaged,
        normalizer=None,
        post_processor={"type": "TemplateProcessing", "single": [piece], "pair": [], "special_tokens": {}},
    )
    assert "tokenizer.json: PanicException: " in refusal(damaged)


@pytest.mark.parametrize("name", ["AutoTokenizer", "AutoModel", "LlamaForCausalLM", "logging", "__class__"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_class_that_is_no_tokenizer(damaged, file, name):
    """It would be loaded instead of one: a model's would read a pickle."""
    (damaged / file).write_text(json.dumps(values_of(damaged, file) | {"tokenizer_class": name}))
    expected = f"{file}: tokenizer_class: got {name}, expected the name of a tokenizer's class"
    assert refusal(damaged).endswith(expected)


def test_a_text_that_cannot_be_encoded(damaged):
    """Is the request's fault: the others go on, and tokens that it has are text."""
    tokenizer_with(damaged, model={"type": "WordLevel", "vocab": {"</s>": 1, "yes": 3}, "unk_token": "?"})
    llm = LLM(damaged, dtype="float32")
    for call in (llm.encode, llm.generate, describe_model(damaged).encode):
        with pytest.raises(
            ConfigError, match=r"^prompt: the model's tokenizer cannot encode 'no\\n': Exception"
        ):
            call("no\n")
    assert llm.encode("yes") == [3]
    assert llm.generate("yes", use_tqdm=False)[0].outputs


def test_more_tokens_than_the_model_knows(damaged, capsys):
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    known = values_of(damaged, "tokenizer.json")["added_tokens"]
    tokenizer_with(
        damaged, added_tokens=[*known, *({"id": 9000 + i, "content": f"<{i}>"} | added for i in range(9000))]
    )
    (damaged / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 10**6, -1, 10**30]}))
    llm = LLM(damaged, dtype="float32")
    said = capsys.readouterr().err
    assert "tokens, the model " in said
    assert "end-of-sequence tokens that the model does not know: 1000000, 1" in said
    assert 1 in llm.loaded.eos_token_ids
    assert max(llm.loaded.eos_token_ids) < llm.vocab_size
    with pytest.raises(ConfigError, match=r"^prompts\[0\]: got \d+, expected token ids in \[0, "):
        llm.generate("<8999>", use_tqdm=False)


def test_the_mark_before_a_template_is_in_no_prompt(damaged):
    """Of a file of its own, of an additional one, and inside the tokenizer's configuration."""
    marked = "\ufeff" + TEMPLATE
    settings_file = damaged / "tokenizer_config.json"

    def prompt():
        tokenizer = load_model(damaged).tokenizer
        text = tokenizer.apply_chat_template([{"role": "user", "content": "a\u2028b"}], tokenize=False)
        assert text == "a\u2028b"
        return tokenizer

    (damaged / "chat_template.jinja").write_text(marked)
    prompt()
    (damaged / "additional_chat_templates").mkdir()
    (damaged / "additional_chat_templates" / "other.jinja").write_text(marked)
    assert prompt().chat_template == {"default": TEMPLATE, "other": TEMPLATE}
    shutil.rmtree(damaged / "additional_chat_templates")
    (damaged / "chat_template.jinja").unlink()
    for template in (marked, [{"name": "default", "template": marked}]):
        settings_file.write_text(
            json.dumps(values_of(damaged, settings_file.name) | {"chat_template": template})
        )
        prompt()
    for template in (5, [5], {"default": 5}):
        settings_file.write_text(
            json.dumps(values_of(damaged, settings_file.name) | {"chat_template": template})
        )
        assert "tokenizer" in refusal(damaged)
    (damaged / "chat_template.jinja").write_bytes(TEMPLATE.encode("utf-16"))
    assert "chat_template.jinja is in UTF-16" in refusal(damaged)


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


def test_a_folder_with_a_name_of_several_lines(damaged):
    other = damaged.rename(damaged.with_name("a\nb\x1b[31m"))
    assert load_model(other)
    (other / WEIGHTS).write_bytes(b"")
    refusal(other)


# -- code from outside --


def test_no_code_is_run_or_fetched(damaged, tmp_path):
    """``auto_map`` of each file, and an attention that names a repository."""
    (damaged / "code.py").write_text("raise SystemExit('this must not run')")
    shutil.copytree(damaged, damaged / "custom_generate")
    (damaged / "custom_generate" / "generate.py").write_text("raise SystemExit('this must not run')")
    auto = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoModel"), "code.X")
    config = values_of(damaged, "config.json")
    for more in (
        {"auto_map": auto},
        {"auto_map": 5},
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation": "somebody/kernel", "experts_implementation": "somebody/kernel"},
        {"model_type": "no-such", "auto_map": auto},
    ):
        (damaged / "config.json").write_text(json.dumps(config | more))
        loads_or_refuses(damaged)
    (damaged / "config.json").write_text(json.dumps(config | {"attn_implementation": "somebody/kernel"}))
    assert load_model(damaged)
    settings_file = damaged / "tokenizer_config.json"
    tokens = {"auto_map": {"AutoTokenizer": ["code.X", "code.X"]}}
    settings_file.write_text(json.dumps(values_of(damaged, settings_file.name) | tokens))
    loads_or_refuses(damaged)


def test_what_lies_beside_a_gguf_is_not_its(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / ("x" * 240 + ".gguf"))
    for name in ("config.json", "tokenizer_config.json", "adapter_config.json", "generation_config.json"):
        (tmp_path / name).write_text("{")
    assert load_model(path, "float32").tokenizer.encode("ab")


# -- what is not swallowed --


def test_interrupts_and_own_assertions_pass(damaged, monkeypatch):
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

    for place in ("AutoConfig", "LlamaForCausalLM", "AutoTokenizer"):
        with monkeypatch.context() as patch:
            patch.setattr(f"transformers.{place}.from_pretrained", interrupted)
            with pytest.raises(KeyboardInterrupt):
                load_model(damaged)


@pytest.mark.slow
def test_the_command_line_says_one_line(damaged):
    (damaged / "config.json").write_text('{"model_type": "llama", "hidden_size": null}')
    command = [sys.executable, "-m", "treeshare.cli", "verify", "--model", str(damaged)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"treeshare: model: cannot load {damaged}: config.json: ")
