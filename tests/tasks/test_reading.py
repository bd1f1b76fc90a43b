from __future__ import annotations

import gzip
import json
import sys
import types

import pytest
from pydantic import BaseModel

from treeshare.errors import DataError
from treeshare.evals import Problem
from treeshare.tasks import hub_access
from treeshare.tasks.reading import read_hub, read_records, require_unique


class Row(BaseModel):
    id: int
    text: str = "-"


ROWS = [{"id": 1, "text": "a\u2028b"}, {"id": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS, indent=2).encode()


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LIST,
        gzip.compress(LINES, mtime=0),
        gzip.compress(LIST, mtime=0),
        LINES.replace(b"\n", b"\r\n\n"),
        b"\xef\xbb\xbf" + LINES,
        b"\n" + LIST,
    ],
)
def test_lines_and_lists_plain_and_gzipped(tmp_path, content):
    path = tmp_path / "data"
    path.write_bytes(content)
    assert [row.model_dump() for row in read_records(path, Row)] == [
        {"id": 1, "text": "a\u2028b"},
        {"id": 2, "text": "-"},
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*: No such file"),
        (b"", "contains no record"),
        (b"[]", "contains no record"),
        (b'{"id": 1}\n{"id": "x"}\n', "line 2, id: Input should be a valid integer"),
        (b'[{"id": 1}, {"text": "t"}]', "1.id: Field required"),
        (b'{"id": 1', "line 1: Invalid JSON"),
        (b'{"id": 1}\n\xff\n', "line 2: Invalid JSON"),
        (b"\x1f\x8b\x00\x00", "cannot read"),
        (gzip.compress(LINES, mtime=0)[:-9], "cannot read"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "data"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_records(path, Row)
    assert "\n" not in str(caught.value)


def test_ids_must_differ():
    problems = [Problem(task_id="a", prompt=""), Problem(task_id="a", prompt="")]
    with pytest.raises(DataError, match="file: a occurs twice"):
        require_unique(problems, "file")


def fake_hub(monkeypatch, load_dataset):
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr(hub_access, "_reason", lambda: "")


def test_the_hub_is_asked_for_each_split(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return [{"id": len(asked)}]

    fake_hub(monkeypatch, load_dataset)
    rows = read_hub("owner/set", Row, config="full", splits=["prompt", "test"])
    assert [row.id for row in rows] == [1, 2]
    read_hub("owner/set", Row, splits=["train"], files="{split}.jsonl")
    assert asked == [
        (("owner/set", "full"), {"split": "prompt"}),
        (("owner/set", "full"), {"split": "test"}),
        (("json",), {"data_files": "hf://datasets/owner/set/train.jsonl", "split": "train"}),
    ]


def test_a_hub_that_does_not_answer_is_asked_once_and_the_cache_is_looked_at(monkeypatch):
    """Whatever the libraries do, while they do it they are told to leave the network alone."""
    from huggingface_hub import constants

    seen = []

    def load_dataset(*_, **__):
        seen.append(constants.HF_HUB_OFFLINE)
        raise ConnectionError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fake_hub(monkeypatch, load_dataset)
    message = (
        r"cannot load owner/set from the hub \({}\); give --data FILE, or fetch it .*: hf download owner/set "
    )
    for reason in ("", "Name or service not known"):
        monkeypatch.setattr(hub_access, "_reason", lambda reason=reason: reason)
        with pytest.raises(DataError, match=message.format(reason or "ConnectionError")):
            read_hub("owner/set", Row, splits=["test"])
    assert seen == [False, True]
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_out_of_reach_and_other_fields_are_named(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no\nroute")

    fake_hub(monkeypatch, refuse)
    with pytest.raises(
        DataError, match=r"cannot load owner/set from the hub \(ConnectionError\); give --data"
    ):
        read_hub("owner/set", Row, splits=["test"])
    fake_hub(monkeypatch, lambda *_, **__: [{"id": 1}, {"name": "x"}])
    with pytest.raises(DataError, match="owner/set, test, record 1, id: Field required"):
        read_hub("owner/set", Row, splits=["test"])
