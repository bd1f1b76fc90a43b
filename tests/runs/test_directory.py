"""Run directories: resume, extend, refuse."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.processes import forkserver
from tests.runs.test_journal import record
from treeshare.config import ARITHMETIC
from treeshare.errors import DataError, RunLockedError, RunMismatchError
from treeshare.runs import Manifest, RunDirectory, prompts_sha256, read_run


def manifest(**changes):
    values = {
        "task": "humaneval",
        "data": "",
        "task_ids": ["T/0", "T/1"],
        "prompts_sha256": prompts_sha256([[1], [2, 3]]),
        "model": "m",
        "model_sha256": "a" * 64,
        "dtype": "float32",
        "sampling": {"temperature": 0.8, "top_p": 1.0},
        "n": 2,
        "seed": 0,
        "versions": {"python": "3.11"},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Manifest(**(values | changes))


def test_a_run_is_resumed(tmp_path):
    out = tmp_path / "a" / "run"
    with RunDirectory(out, manifest()) as run:
        assert run.remaining("T/0") == [0, 1]
        run.append(record(1))
    with RunDirectory(out, manifest(created="later", versions={"python": "3.12"}, model="other name")) as run:
        assert run.remaining("T/0") == [0]
        assert run.remaining("T/1") == [0, 1]
        assert "python: run has '3.11', command has '3.12'" in run.version_warning
        assert list(run.records()) == [record(1)]
    held, records = read_run(out)
    assert held == manifest()
    assert records == [record(1)]


def test_a_run_is_extended_and_never_shrinks(tmp_path):
    with RunDirectory(tmp_path / "run", manifest(n=2)) as run:
        run.append(record(0))
    with RunDirectory(tmp_path / "run", manifest(n=5)) as run:
        assert run.remaining("T/0") == [1, 2, 3, 4]
    with RunDirectory(tmp_path / "run", manifest(n=1)) as run:
        assert run.manifest.n == 5
        assert run.remaining("T/0") == []
    with RunDirectory(tmp_path / "run", manifest(n=3)) as run:
        assert run.remaining("T/0") == [1, 2]
    assert read_run(tmp_path / "run")[0].n == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task_options": {"prompt_field": "q", "judge": "math"}},
            "judge: run has None, command has 'math'; prompt_field: run has None, command has 'q'",
        ),
        ({"sampling": {"temperature": 0.7, "top_p": 1.0}}, "temperature: run has 0.8, command has 0.7"),
        ({"sampling": {"temperature": 0.8, "top_p": 1.0, "new": 1}}, "new: run has None, command has 1"),
        ({"sharing": "none"}, "sharing: run has 'tree', command has 'none'"),
        ({"problems_sha256": "d"}, "problems_sha256: run has '', command has 'd'"),
        ({"sampling": {str(i): i for i in range(99)}}, "; and 93 more; give"),
        ({"seed": 1}, "seed: run has 0, command has 1"),
        ({"dtype": "bfloat16"}, "dtype: run has 'float32', command has 'bfloat16'"),
        ({"model_sha256": "b" * 64}, "model_sha256: run has 'aaa"),
        ({"task_ids": ["T/0"]}, "task_ids: run has 2 problems, command has 1"),
        ({"prompts_sha256": "c" * 64}, "prompts_sha256"),
    ],
)
def test_a_changed_parameter_is_refused(tmp_path, changes, message):
    with RunDirectory(tmp_path / "run", manifest()):
        pass
    with pytest.raises(RunMismatchError) as caught:
        RunDirectory(tmp_path / "run", manifest(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with RunDirectory(tmp_path / "run", manifest()):
        pass  # the refusal let go of the lock


def test_a_second_writer_is_refused(tmp_path):
    with RunDirectory(tmp_path / "run", manifest()):
        with pytest.raises(RunLockedError, match=f"process {os.getpid()}"):
            RunDirectory(tmp_path / "run", manifest())
        assert read_run(tmp_path / "run")[1] == []


def lock_and_die(out):
    RunDirectory(out, manifest())
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_lock_ends_with_its_process(tmp_path):
    child = forkserver.Process(target=lock_and_die, args=(tmp_path / "run",))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with RunDirectory(tmp_path / "run", manifest()):
        pass


def test_somebody_elses_files_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="not empty and contains no run"):
        RunDirectory(tmp_path, manifest())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


def broken(path, content):
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\xff", b"[]", b'{"format": 2}', b'{"format": 1, "task": 5}', b"{" * 100, None],
    ids=["empty", "binary", "a list", "another format", "wrong type", "deep", "a folder"],
)
def test_a_broken_manifest_is_one_line(tmp_path, content):
    broken(tmp_path / "manifest.json", content)
    for action in (lambda: RunDirectory(tmp_path, manifest()), lambda: read_run(tmp_path)):
        with pytest.raises(DataError, match=r"manifest\.json") as caught:
            action()
        assert "\n" not in str(caught.value)


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match="expected an existing directory"):
        read_run(tmp_path / "none")
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        read_run(tmp_path)
    with RunDirectory(tmp_path / "run", manifest()):
        pass
    (tmp_path / "run" / "samples.jsonl").unlink()
    with pytest.raises(DataError, match="cannot read"):
        read_run(tmp_path / "run")


def test_paths_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot use"):
        RunDirectory(tmp_path / "file" / "run", manifest())
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(DataError, match="cannot use"):
        RunDirectory(loop, manifest())


def test_a_manifest_is_replaced_whole(tmp_path, monkeypatch):
    with RunDirectory(tmp_path / "run", manifest(n=2)):
        pass

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError, match="No space left on device"):
        RunDirectory(tmp_path / "run", manifest(n=9))
    monkeypatch.undo()
    assert read_run(tmp_path / "run")[0].n == 2
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".lock", "manifest.json", "samples.jsonl"]


def old_run(path):
    """A run that was begun before arithmetic had a version, with its fold cost."""
    with RunDirectory(path, manifest(arithmetic=0)) as run:
        run.append(record(1))
    stored = json.loads((path / "manifest.json").read_text())
    del stored["arithmetic"]
    stored["fold_cost"] = {"launch_cost": 8, "merge_cost": 1, "token_cost": 1, "max_rows": 256}
    (path / "manifest.json").write_text(json.dumps(stored))
    return path


@pytest.mark.parametrize("num_more", [0, 2])
def test_a_run_of_another_arithmetic_is_not_gone_on_with(tmp_path, num_more):
    """Neither resumed nor extended; one line says why, and nothing is changed."""
    path = old_run(tmp_path / "run")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    wanted = manifest(arithmetic=ARITHMETIC, n=2 + num_more)
    with pytest.raises(
        RunMismatchError, match=f"computed by arithmetic 0, .* by {ARITHMETIC}; give"
    ) as caught:
        RunDirectory(path, wanted)
    assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_run_of_another_arithmetic_is_read(tmp_path):
    held, records = read_run(old_run(tmp_path / "run"))
    assert held.arithmetic == 0
    assert held.fold_cost["launch_cost"] == 8
    assert records == [record(1)]
