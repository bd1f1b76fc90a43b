"""``treeshare models``: the list, and what is said of a model without its weights."""

from __future__ import annotations

import json
import shutil

import pytest
import transformers
from typer.testing import CliRunner

from tests.models.gguf_files import write_gguf
from tests.models.tiny import _COMMON, saved_model
from treeshare.cli.app import app
from treeshare.models import cache_dir, describe_model
from treeshare.models.known import known_models


def run(*arguments):
    """Standard output and exit status."""
    result = CliRunner().invoke(app, ["models", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.stdout, result.exit_code


def test_the_list():
    text, status = run()
    known = known_models()
    assert status == 0
    assert len(text.splitlines()) == len(known) + 1
    assert len(known) > 200
    assert {model.verdict for model in known} == {"equal", "refused", "not built"}
    assert all(model.reason for model in known if model.verdict != "equal")


def test_a_folder_without_weights(tmp_path):
    config = transformers.MistralConfig(**_COMMON, sliding_window=64, architectures=["MistralForCausalLM"])
    config.save_pretrained(tmp_path)
    text, status = run(tmp_path, "--dtype", "float32")
    assert status == 0
    assert text.splitlines() == [
        f"{tmp_path}: mistral: runs",
        "longest sequence: 1,024 tokens",
        "weights: 113,088, float32",
        "KV: 1,152 bytes per token in 3 layers (heads x widths of key/value: 2 x 16/16)",
        "  of these 1,152 bytes are read for the last 64 tokens only",
        "attention: sliding-window attention",
    ]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.BloomConfig, "bloom: not implemented: ALiBi position biases"),
        (
            transformers.BartConfig,
            "bart: not a causal language model (an encoder-decoder)",
        ),
        (transformers.MambaConfig, "mamba: not implemented: recurrent or convolutional state"),
        (transformers.ViTConfig, "vit: not a causal language model (transformers has no such class"),
    ],
)
def test_what_is_refused(tmp_path, config, reason):
    config().save_pretrained(tmp_path)
    text, status = run(tmp_path)
    assert status == 1
    assert text.startswith(f"{tmp_path}: refused: {reason}")
    assert len(text.splitlines()) == 1


def test_a_gguf_file_is_not_converted(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "x.gguf")
    text, status = run(path)
    assert status == 0
    assert text.startswith(f"{path}: llama: runs\n")
    assert f"{describe_model(path).geometry.bytes_per_token:,} bytes per token" in text
    before = len(list((cache_dir() / "models").iterdir()))
    shutil.rmtree(cache_dir())
    assert run(path) == (text, 0)
    assert before == 1
    assert not (cache_dir() / "models").exists()


def test_a_mistake_is_one_line(tmp_path):
    shutil.copytree(saved_model("llama", tmp_path), tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text(json.dumps({"model_type": "none-such"}))
    result = CliRunner().invoke(app, ["models", str(tmp_path / "copy")])
    assert "cannot load" in str(result.exception)
    assert "\n" not in str(result.exception)
