"""GGUF files' bytes: parts, wherever one is given; what is cut off, damaged or made to harm is one line."""

from __future__ import annotations

import importlib.util
import random
import re
import struct

import gguf
import pytest

from tests.models.gguf_models import add_vocabulary, finish, make_writer, tensors_of, values_of
from tests.models.tiny import CONFIGS, make_model
from treeshare.errors import ModelLoadError, TreeshareError
from treeshare.installation import how_to_add
from treeshare.models import describe_model, load_model
from treeshare.models.gguf_file import join, read_header, read_parts


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path, tensors, values, *, vocabulary=True):
    writer = make_writer(path, "llama", values)
    if vocabulary:
        add_vocabulary(writer)
    finish(writer, tensors)
    return path


@pytest.fixture(scope="module")
def model():
    return make_model(CONFIGS["llama"]())


def write_parts(folder, model, count=3, name="m-{:05}-of-{:05}.gguf"):
    """A model in parts, as llama-gguf-split makes them: the first has all metadata."""
    tensors = list(tensors_of(model, "llama").items())
    paths = []
    for number in range(count):
        split = {"split.no": number, "split.count": count, "split.tensors.count": len(tensors)}
        values = (values_of(model.config) if number == 0 else {}) | split
        part = dict(tensors[number::count])
        path = folder / name.format(number + 1, count)
        paths.append(write(path, part, values, vocabulary=number == 0))
    return paths


def message_of(path, *loads):
    messages = []
    for load in loads or (load_model, describe_model):
        with pytest.raises(ModelLoadError) as caught:
            load(path)
        messages.append(str(caught.value))
    assert len(set(messages)) == 1
    assert "\n" not in messages[0]
    return messages[0]


def test_parts_are_one_model_whichever_is_given(tmp_path, model):
    whole = write(tmp_path / "whole.gguf", tensors_of(model, "llama"), values_of(model.config))
    parts = write_parts(tmp_path, model)
    expected = load_model(whole, "float32")
    for path in parts[1:]:
        loaded = load_model(path, "float32")
        assert loaded.fingerprint() == expected.fingerprint()
        assert loaded.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    assert describe_model(parts[2], "float32").geometry == expected.geometry


def test_parts_by_gguf_pys_own_reader(tmp_path, model):
    """The joined file has each tensor's numbers and all metadata but those of the split."""
    parts = read_parts(write_parts(tmp_path, model)[1])
    join(parts, tmp_path / "joined.gguf")
    reader = gguf.GGUFReader(tmp_path / "joined.gguf")
    expected = tensors_of(model, "llama")
    assert {tensor.name: tensor.data.tolist() for tensor in reader.tensors} == {
        name: value.tolist() for name, value in expected.items()
    }
    assert not any(key.startswith("split.") for key in reader.fields)
    assert "tokenizer.ggml.tokens" in reader.fields
    join(parts, tmp_path / "bare.gguf", with_data=False)
    bare, joined = (tmp_path / name for name in ("bare.gguf", "joined.gguf"))
    assert bare.stat().st_size == joined.stat().st_size
    assert read_header(bare).tensors == read_header(joined).tensors


def test_parts_that_do_not_belong_together(tmp_path, model):
    first, second, third = write_parts(tmp_path, model)
    renamed = third.rename(tmp_path / "other.gguf")
    assert "is part 3 of 3; expected a name that ends in -00001-of-00003.gguf" in message_of(renamed)
    lost = "is one of 3 parts, and beside it are missing: m-00003-of-00003.gguf"
    assert lost in message_of(first)
    assert lost in message_of(second)
    third.write_bytes(second.read_bytes())
    assert "says that it is part 1 of 3, counted from 0, expected 2 of 3" in message_of(first)
    other = make_model(CONFIGS["llama"]())
    split = {"split.no": 2, "split.count": 3}
    third.unlink()
    write(
        third, {"blk.0.attn_q.weight": other.model.layers[0].self_attn.q_proj.weight.detach().numpy()}, split
    )
    assert "its parts have " in message_of(first)


def _cut(content, rng):
    return content[: rng.randrange(len(content))]


def _changed(content, rng):
    """A number somewhere in the header, large."""
    place = rng.randrange(4, 2000)
    value = rng.choice([2**63, 2**32 - 1, 2**31, 10**12, 0])
    return content[:place] + struct.pack("<Q", value) + content[place + 8 :]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [_cut, _changed])
def test_damaged_files_are_one_line(tmp_path, model, damage):
    whole = write(tmp_path / "whole.gguf", tensors_of(model, "llama"), values_of(model.config))
    content, rng = whole.read_bytes(), random.Random(1)
    refused = 0
    for number in range(40):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(damage(content, rng))
        message = ""
        try:
            load_model(path, "float32")
        except TreeshareError as error:
            message = str(error)
            refused += 1
        assert "\n" not in message
        path.unlink()
    assert refused > 30 or damage is _changed


def test_a_cut_file_says_what_is_lost(tmp_path, model):
    whole = write(tmp_path / "whole.gguf", tensors_of(model, "llama"), values_of(model.config))
    content = whole.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[:-100])
    assert f"it ends after {len(content) - 100} bytes, its tensors after " in message_of(path)
    path.write_bytes(content[:700])
    assert "it ends inside its header; get this file again" in message_of(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))
    assert f"{2**60} tensors and {2**60} metadata in 24 bytes" in message_of(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 9, 0, 0))
    assert "version 9 of the format, expected 2 or 3" in message_of(path)
    path.write_bytes(b"")
    assert "does not begin with GGUF" in message_of(path)


def test_what_reads_these_files_is_named_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "accelerate" else name)
    expected = re.escape(f"model: a GGUF file needs accelerate; install with: {how_to_add('gguf')}")
    with pytest.raises(ModelLoadError, match=f"^{expected}$"):
        read_parts(tmp_path / "model.gguf")
