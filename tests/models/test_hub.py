"""Hub ids where the hub is not asked or does not answer: the cache's folder, or one line with the command."""

from __future__ import annotations

import shutil
import time

import pytest

from tests.cli.text_model import saved_text_model
from treeshare import LLM
from treeshare.errors import ModelLoadError
from treeshare.models import describe_model, load_model
from treeshare.models import hub as module

NAME = "some-org/a-model"
REMEDY = f"where there is a network, fetch it with: hf download {NAME}"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache, empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / f"models--{NAME.replace('/', '--')}"


def fill(cache, folder, lost=()):
    """Put a folder's files into the cache as a fetched revision."""
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123")
    for path in folder.iterdir():
        if path.name not in lost:
            (snapshot / path.name).symlink_to(path)
    return snapshot


def refusal():
    messages = []
    for load in (load_model, describe_model):
        began = time.monotonic()
        with pytest.raises(ModelLoadError) as caught:
            load(NAME)
        assert time.monotonic() - began < 10
        messages.append(str(caught.value))
    assert len(set(messages)) == 1
    assert "\n" not in messages[0]
    return messages[0]


def test_a_model_that_was_never_fetched(cache):
    assert refusal() == (
        f"model: {NAME} is not in the hub's cache on this machine, and the hub was not asked "
        f"(HF_HUB_OFFLINE is set); {REMEDY}"
    )


def test_a_hub_that_does_not_answer(cache, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(module, "why_silent", lambda: "no answer within 4 s")
    assert "and the hub does not answer (no answer within 4 s); where there is" in refusal()


def test_a_revision_that_is_not_there(cache, model_dir):
    fill(cache, model_dir("llama"))
    (cache / "refs" / "main").write_text("4567")
    assert refusal().endswith(REMEDY)


def test_a_snapshot_without_a_tokenizer_is_used_and_said(cache, model_dir, capsys):
    fill(cache, model_dir("llama"))
    loaded = load_model(NAME, "float32")
    assert loaded.tokenizer is None
    assert loaded.model_id == NAME
    assert capsys.readouterr().err == (
        f"{NAME}: its snapshot in the hub's cache has no tokenizer, and the hub was not asked "
        f"(HF_HUB_OFFLINE is set); {REMEDY}\n"
    )


@pytest.mark.parametrize("sharded", [False, True])
def test_a_snapshot_without_weights(cache, model_dir, sharded, capsys):
    """What needs none of them is said all the same."""
    snapshot = fill(cache, model_dir("llama"), lost=["model.safetensors"])
    names = "weights (.safetensors)"
    if sharded:
        names = "model-00002-of-00002.safetensors"
        (snapshot / "model-00001-of-00002.safetensors").write_bytes(b"")
        (snapshot / "model.safetensors.index.json").write_text(
            f'{{"weight_map": {{"a": "model-00001-of-00002.safetensors", "b": "{names}"}}}}'
        )
    with pytest.raises(ModelLoadError) as caught:
        load_model(NAME)
    message = f"model: {NAME}: the hub's cache on this machine lacks {names}, and the hub was not asked"
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(REMEDY)
    assert describe_model(NAME, "float32").geometry.num_layers == 3


def test_a_revision_of_the_cache(cache, tmp_path):
    """By branch, tag or commit, without the hub: weights, tokenizer and configuration are that revision's."""
    transformers = pytest.importorskip("transformers")
    folders = {}
    for commit, word in (("a" * 40, "first"), ("b" * 40, "second")):
        folders[commit] = folder = cache / "snapshots" / commit
        shutil.copytree(saved_text_model(tmp_path / word), folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = word
        tokenizer.save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folders["b" * 40])
    model.get_input_embeddings().weight.data.mul_(2)
    model.save_pretrained(folders["b" * 40])
    (cache / "refs").mkdir()
    for name, commit in (("main", "a" * 40), ("v1", "b" * 40)):
        (cache / "refs" / name).write_text(commit)

    def scale(**options):
        llm = LLM(NAME, dtype="float32", **options)
        weight = llm.model.get_input_embeddings().weight
        return round(weight.abs().sum().item(), 2), llm.get_tokenizer().chat_template

    main = scale()
    assert main[1] == "first"
    assert scale(revision="main") == scale(revision="a" * 40) == main
    other = (pytest.approx(2 * main[0], rel=1e-4), "second")
    assert scale(revision="v1") == scale(revision="b" * 40) == other
    with pytest.raises(ModelLoadError, match=f"hf download {NAME} --revision v2"):
        LLM(NAME, revision="v2")
