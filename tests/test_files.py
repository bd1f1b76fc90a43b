"""Files from outside and files of results: every reader of the package against what is no plain file."""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from treeshare import files
from treeshare.cli.openai_options import read_template
from treeshare.engine.workload import Workload
from treeshare.errors import DataError
from treeshare.evals.results import RESULTS_NAME, read_results
from treeshare.evals.verdict_cache import VerdictCache
from treeshare.integrations.openai.batch import open_output, read_batch
from treeshare.runs.journal import Journal, read_records
from treeshare.runs.manifest import Manifest
from treeshare.runs.stats_log import read_stats
from treeshare.runs.tree_file import TreeFile
from treeshare.tasks.reading import read_records as read_task_records


class Row(BaseModel):
    text: str


def results_beside(path):
    """``read_results`` takes the folder, and the file's name is its own."""
    folder = path.parent / "run"
    folder.mkdir()
    path.rename(folder / RESULTS_NAME) if os.path.lexists(path) else None
    return read_results(folder)


READERS = {
    "journal": read_records,
    "journal, to write": Journal,
    "manifest": Manifest.read,
    "results": results_beside,
    "stats": read_stats,
    "tree": TreeFile.read,
    "verdicts": VerdictCache,
    "batch": lambda path: read_batch(path, None, names=("m",)),
    "batch's output": open_output,
    "data": lambda path: read_task_records(path, Row),
    "chat template": read_template,
    "workload": Workload.read,
}
TEXTS = ("batch", "data", "chat template", "workload")
"""What people write with programs of their own, which may put a byte order mark in front."""


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


@pytest.mark.parametrize("make", [pipe, endless, folder])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name, make):
    make(tmp_path / "file")
    with pytest.raises(DataError) as caught:
        READERS[name](tmp_path / "file")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in READERS if name not in ("results", "stats", "tree")])
@pytest.mark.parametrize("file", ["a\0b", "\ud800\0", "missing/file"])
def test_names_that_no_file_can_have(tmp_path, name, file):
    with pytest.raises(DataError, match=r"cannot (read|open|use|write)|not a possible file name"):
        READERS[name](tmp_path / file)


@pytest.mark.parametrize("name", ["journal, to write", "verdicts", "batch's output"])
def test_a_link_is_not_written_through(tmp_path, name):
    (tmp_path / "victim").write_text("")
    (tmp_path / "file").symlink_to(tmp_path / "victim")
    with pytest.raises(DataError, match="symbolic link"):
        READERS[name](tmp_path / "file")
    assert (tmp_path / "victim").read_text() == ""


@pytest.mark.parametrize("name", [name for name in READERS if "batch's" not in name and "write" not in name])
def test_a_file_larger_than_the_maximum(tmp_path, monkeypatch, name):
    with open(tmp_path / "file", "wb") as file:  # takes no room on the disk
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        monkeypatch.setattr(files, "MAX_LINE_BYTES", 1 << 20)
        with pytest.raises(DataError):
            READERS[name](tmp_path / "file")
        assert tracemalloc.get_traced_memory()[1] < 600 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", TEXTS)
def test_another_encoding_is_named(tmp_path, name, encoding):
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "file").write_bytes((mark + '{"text": "a"}\n').encode(encoding))
    with pytest.raises(DataError, match=r"is in UTF-(16|32), expected UTF-8"):
        READERS[name](tmp_path / "file")


def test_utf_16_without_a_mark_is_named(tmp_path):
    (tmp_path / "file").write_bytes('{"text": "a"}\n'.encode("utf-16-be"))
    (tmp_path / "other").write_bytes('{"text": "a"}\n'.encode("utf-16-le"))
    for name in ("file", "other"):
        with pytest.raises(DataError, match="is in UTF-16"):
            read_task_records(tmp_path / name, Row)


def test_a_byte_order_mark_is_no_text(tmp_path):
    mark = "\ufeff".encode()
    (tmp_path / "data").write_bytes(mark + b'{"text": "a"}\n')
    assert read_task_records(tmp_path / "data", Row) == [Row(text="a")]
    (tmp_path / "template").write_bytes(mark + b"{{ messages }}")
    assert read_template(tmp_path / "template") == "{{ messages }}"
    workload = {"problems": [{"prompt_ids": [1], "samples": 1}], "new_tokens": 1}
    (tmp_path / "workload").write_bytes(mark + json.dumps(workload).encode())
    assert Workload.read(tmp_path / "workload").new_tokens == 1


# -- gzip ---------------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_before_it_unpacks(tmp_path):
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(16 << 20)) * 256)  # 4 GiB
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="unpacks to more than"):
            files.read_packed(tmp_path / "bomb", "data")
        assert tracemalloc.get_traced_memory()[1] < 1 << 30
    finally:
        tracemalloc.stop()


@given(parts=st.lists(st.binary(max_size=200), min_size=1, max_size=4), padding=st.integers(0, 20))
def test_members_are_joined(tmp_path_factory, parts, padding):
    path = tmp_path_factory.getbasetemp() / "members.gz"
    path.write_bytes(b"".join(map(gzip.compress, parts)) + bytes(padding))
    assert files.read_packed(path, "data") == b"".join(parts)


@pytest.mark.parametrize("cut", [2, 5, 12, -9, -1])
def test_a_damaged_file_is_refused(tmp_path, cut):
    packed = gzip.compress(b"text " * 100)
    (tmp_path / "cut").write_bytes(packed[:cut])
    with pytest.raises(DataError, match="cannot read"):
        files.read_packed(tmp_path / "cut", "data")
    (tmp_path / "after").write_bytes(packed + b"no member")
    with pytest.raises(DataError, match="cannot read"):
        files.read_packed(tmp_path / "after", "data")


# -- JSON ---------------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from('a"\\\u2028\u2029\x85\n\r\x0b\x0c\x1c\ud800é'), max_size=12))
def test_a_json_text_is_one_line_for_every_reader(text):
    line = files.dump_json({text: text}).decode()
    assert len(line.splitlines()) == 1
    assert files.parse_json(line.encode()) == {text: text}


# -- writing ------------------------------------------------------------------------------------------------


def test_an_output_goes_where_a_link_leads_and_a_file_of_ours_replaces_it(tmp_path):
    target = tmp_path / "target"
    for write, followed in ((files.write_output, True), (files.write_atomically, False)):
        target.write_text("old")
        link = tmp_path / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        write(link, b"new")
        assert (link.is_symlink(), target.read_text()) == ((True, "new") if followed else (False, "old"))


def test_a_pipe_gets_an_output(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    files.write_output(tmp_path / "pipe", b"result")
    reader.join(10)
    assert found == [b"result"]
    assert (tmp_path / "pipe").is_fifo()


def test_only_one_module_opens_files():
    """A call that opens a file stands in ``files.py``, or here with its reason."""
    known = {
        "cli/app.py": "standard streams",
        "cli/doctor.py": "the machine's own files",
        "devices.py": "the machine's own files",
        "control_groups.py": "the machine's own files",
        "engine/machine.py": "the user's cache",
        "evals/report/page.py": "the package's own files",
        "evals/sandbox": "the package's own files, and descriptors",
        "models/gguf_file.py": "the user's cache",
        "models/known.py": "the package's own files",
        "models/checkpoint.py": "safetensors' own reader, of files that models/folder.py has looked at",
        "installation.py": "what pip wrote beside the package",
        "integrations/ray_watchdog.py": "the machine's own files",
        "native/openmp.py": "the machine's own files",
        "runs/directory.py": "the lock",
        "runs/stats_log.py": "the machine's own files",
    }
    calls = ("open(", ".read_text(", ".read_bytes(", ".write_text(", ".write_bytes(", "gzip.")
    roots = [Path(files.__file__).parent, Path(read_task_records.__code__.co_filename).parent]
    for root in roots:
        for path in root.rglob("*.py"):
            name = path.relative_to(root).as_posix()
            if name == "files.py" or any(name.startswith(place) for place in known):
                continue
            text = "\n".join(line.split("#")[0] for line in path.read_text(encoding="utf-8").splitlines())
            found = [call for call in calls if re.search(rf"(?<![A-Za-z_]){re.escape(call)}", text)]
            assert not found, f"{name} opens a file by itself"
