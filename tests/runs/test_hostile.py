"""Directories that somebody prepared: nothing outside is written, nothing hangs, a refusal is one line."""

from __future__ import annotations

import json
import os

import pytest

from tests.runs.test_directory import manifest
from tests.runs.test_journal import record
from treeshare.errors import DataError, RunMismatchError
from treeshare.runs import Manifest, RunDirectory, make_manifest, read_run


@pytest.fixture
def out(tmp_path):
    with RunDirectory(tmp_path / "run", manifest()) as run:
        run.append(record(0))
    return tmp_path / "run"


def refused(action, message, kind=DataError):
    with pytest.raises(kind, match=message) as caught:
        action()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


def replaced(path, how, target):
    path.unlink(missing_ok=True)
    if how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    else:
        path.symlink_to({"loop": path, "zeros": "/dev/zero", "file": target, "nothing": target / "x"}[how])


@pytest.mark.parametrize("how", ["pipe", "folder", "loop", "zeros", "file", "nothing"])
@pytest.mark.parametrize("name", [".lock", "manifest.json", "samples.jsonl"])
def test_what_is_not_a_file_is_refused(out, tmp_path, name, how):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    replaced(out / name, how, victim)
    refused(lambda: RunDirectory(out, manifest()), "cannot|not JSON")
    if name != ".lock":
        refused(lambda: read_run(out), "cannot|not JSON|line 1|has no manifest") if how != "file" else None
    assert victim.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "victim"]


def test_somebodys_manifest_gets_no_company(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "a browser extension"}')
    refused(lambda: RunDirectory(tmp_path, manifest()), r"manifest\.json: task: Field required")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_manifest_too_large(out):
    os.truncate(out / "manifest.json", 1 << 40)
    refused(lambda: RunDirectory(out, manifest()), "larger than")
    refused(lambda: read_run(out), "larger than")


def test_a_journal_that_is_one_endless_line(out, monkeypatch):
    monkeypatch.setattr("treeshare.files.MAX_LINE_BYTES", 4096)
    os.truncate(out / "samples.jsonl", 1 << 30)
    refused(lambda: RunDirectory(out, manifest()), "line 2: longer than 4096 bytes")
    refused(lambda: read_run(out), "line 2: longer than 4096 bytes")


@pytest.mark.parametrize(
    "change",
    [
        {"a\nb\x1b[31m": 1},
        {"n": "2"},
        {"n": 0},
        {"n": True},
        {"seed": -1},
        {"format": 2},
        {"sampling": {"x": [[1]]}},
        {"task_ids": [1]},
        {"versions": []},
    ],
)
def test_a_manifest_with_other_values(out, change):
    (out / "manifest.json").write_text(json.dumps(manifest().model_dump() | change))
    refused(lambda: RunDirectory(out, manifest()), r"manifest\.json: ")


def test_what_is_shown_is_printable(out):
    hostile = {"sampling": {"t\n\x1b": "\x1b[2J" * 99}, "versions": {"\r": "\n"}, "task": "\u202e\n"}
    (out / "manifest.json").write_text(json.dumps(manifest().model_dump() | hostile))
    refused(lambda: RunDirectory(out, manifest()), "contains another run", RunMismatchError)
    held = Manifest.read(out / "manifest.json")
    assert held.version_warning(manifest()).isprintable()
    (out / ".lock").write_bytes(b"\x1b[2J\xff\n")
    with RunDirectory(out, held):
        (out / ".lock").write_bytes(b"\x1b[2J\xff\n")
        with pytest.raises(OSError, match=r"process \(unknown\);"):
            RunDirectory(out, held)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"sampling": ' * 9999, b"\xff\xfe{\x00", b"1" * 9999])
def test_a_manifest_that_parsers_dislike(out, content):
    (out / "manifest.json").write_bytes(content)
    refused(lambda: RunDirectory(out, manifest()), r"manifest\.json: not JSON")


@pytest.mark.parametrize("foreign", [record(2), record(0, task_id="T/9"), record(0, task_id="\x1b\n" * 999)])
def test_a_completion_of_another_run(out, foreign):
    with (out / "samples.jsonl").open("ab") as file:
        file.write(foreign.line())
    refused(lambda: RunDirectory(out, manifest()), r"does not belong to the run \(2 problems, n = 2\)")
    refused(lambda: read_run(out), r"does not belong to the run \(2 problems, n = 2\)")


def test_names_that_are_not_utf8(tmp_path):
    strange = manifest(data="/data/\udcff\u00e9.jsonl", task_ids=["T/\ud800", "T/1"])
    path = tmp_path / "run\udcff"
    with RunDirectory(path, strange) as run:
        run.append(record(0, task_id="T/\ud800"))
    with RunDirectory(path, strange) as run:
        assert run.remaining("T/\ud800") == [1]
    assert read_run(path)[0] == strange
    refused(lambda: RunDirectory(path, manifest()), r"run\\udcff contains another run", RunMismatchError)


def test_a_folder_that_may_not_be_written(out):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    out.chmod(0o500)
    try:
        refused(lambda: RunDirectory(out, manifest(n=3)), "Permission denied")
        assert len(read_run(out)[1]) == 1
    finally:
        out.chmod(0o700)


def test_a_task_id_that_comes_twice():
    with pytest.raises(DataError, match="two problems have the task id a"):
        make_manifest(None, task="t", data="", task_ids=["a", "b", "a"], prompts=[], params=None)
