"""The command in a process: interrupts, closed, broken and full streams, full disks, strange names."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.cli.conftest import finished, forked, lines_of, write_lines
from tests.processes import forkserver
from tests.runs.test_faults import tiny_disk  # noqa: F401
from treeshare.cli import main

LONG = ["--max-num-seqs", 16, "--max-tokens", 40]


def wait_for_lines(out, number):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if (out / "samples.jsonl").exists() and len(lines_of(out)) >= number:
            return
        time.sleep(0.01)
    raise AssertionError(f"{out}: not {number} lines")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_run_that_goes_on(sampling, tmp_path, number):
    out, err = tmp_path / "run", tmp_path / "err"
    child = forked(*sampling, *LONG, "-n", 250, "--out", out, stderr=err)
    wait_for_lines(out, 5)
    os.kill(child.pid, number)
    if number == signal.SIGINT:
        assert finished(child) == 130
        assert "interrupted: finished completions are kept; run the same command to resume" in err.read_text()
    else:
        assert finished(child) == -number
    assert "Traceback" not in err.read_text()
    held = lines_of(out)
    assert 5 <= len(held) < 750
    assert (out / "samples.jsonl").read_bytes().endswith(b"\n")
    assert finished(forked(*sampling, *LONG, "-n", 2, "--out", out)) == 0
    assert lines_of(out)[: len(held)] == held
    assert finished(forked(*sampling, *LONG, "-n", 2, "--out", tmp_path / "undisturbed")) == 0
    assert set(lines_of(out)) >= set(lines_of(tmp_path / "undisturbed"))


def test_an_interrupt_while_the_model_is_loaded(cli, sampling, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("treeshare.engine.llm.load_model", interrupted)
    result = cli(*sampling, "--out", tmp_path / "run")
    assert (result.status, result.out, result.err) == (130, "", "")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def tree_command(text_model, data):
    return ["tree", "--task", "humaneval", "--data", data, "--model", text_model]


def broken_pipe():
    read, write = os.pipe()
    os.close(read)
    return write


def test_a_reader_that_has_gone_is_no_fault(tree_command, tmp_path):
    err = tmp_path / "err"
    assert finished(forked(*tree_command, stdout=broken_pipe, stderr=err)) == 141
    assert err.read_text() == ""


def test_stdout_on_a_full_disk(tree_command, tmp_path):
    err = tmp_path / "err"
    assert finished(forked(*tree_command, stdout="/dev/full", stderr=err)) == 2
    assert err.read_text() == "treeshare: cannot write output: No space left on device\n"


def full_pipe():
    """A pipe that takes nothing and refuses to wait, until it is read half a second later."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(write, False)
    os.write(write, b"x" * 4096)

    def drain():
        while os.read(read, 4096):
            pass

    timer = threading.Timer(0.5, drain)
    timer.daemon = True
    timer.start()
    return write


def test_full_pipes_are_waited_for(sampling, tmp_path):
    arguments = [*sampling, "-n", 2, "--out", tmp_path / "run"]
    assert finished(forked(*arguments, stdout=full_pipe, stderr=full_pipe)) == 0
    assert len(lines_of(tmp_path / "run")) == 6


def without_streams(words):
    """What Python makes of ``treeshare ... <&- >&- 2>&-``."""
    os.closerange(0, 3)
    sys.stdin = sys.stdout = sys.stderr = sys.__stdin__ = sys.__stdout__ = sys.__stderr__ = None
    sys.argv = ["treeshare", *words]
    main()


def test_closed_streams_do_not_end_in_the_journal(sampling, tmp_path):
    out = tmp_path / "run"
    words = [*map(str, sampling), "-n", "2", "--out", str(out)]
    child = forkserver.Process(target=without_streams, args=(words,))
    child.start()
    assert finished(child) == 0
    assert len([json.loads(line) for line in lines_of(out)]) == 6
    assert (out / ".lock").read_text().isdigit()


def test_a_full_disk_and_then_a_larger_one(sampling, tmp_path, tiny_disk):  # noqa: F811
    arguments = [*sampling, "-n", 200, "--out", tiny_disk / "run"]
    err = tmp_path / "err"
    assert finished(forked(*arguments, stderr=err)) == 2
    assert "Traceback" not in err.read_text()
    refusal = err.read_text().splitlines()[-1]
    assert re.fullmatch(r"treeshare: journal: .*No space left on device; free disk space and resume", refusal)
    held = lines_of(tiny_disk / "run")
    assert len(held) > 50
    subprocess.run(["mount", "-o", "remount,size=4m", str(tiny_disk)], check=True)
    assert finished(forked(*arguments)) == 0
    lines = lines_of(tiny_disk / "run")
    assert lines[: len(held)] == held
    assert len({(r["task_id"], r["completion_index"]) for r in map(json.loads, lines)}) == len(lines) == 600


def test_paths_that_are_not_utf8(cli, sampling, tmp_path, problems):
    data = write_lines(tmp_path / "d\udcff\n.jsonl", problems)
    out = tmp_path / "run\udcff"
    arguments = [*sampling, "-n", 1, "--data", data, "--out", out]
    result = cli(*arguments)
    assert result.status == 0
    assert "run\\udcff" in result.out
    assert cli(*arguments).status == 0
    assert cli("evaluate", out, "--json", tmp_path / "s\udcff.json").status == 0
    assert json.loads((tmp_path / "s\udcff.json").read_text())["num_completions"] == 3
    assert "d\\udcff\\n.jsonl" in cli(*arguments, "--data", tmp_path / "d\udcff\n.jsonl2").refusal


def test_a_terminal_that_cannot_show_trees(cli, tree_command, tmp_path, monkeypatch):
    with open(tmp_path / "out", "w", encoding="ascii") as ascii_only:
        monkeypatch.setattr(sys, "stdout", ascii_only)
        assert cli(*tree_command).status == 0
    assert "\\u251c\\u2500 7 tokens" in (tmp_path / "out").read_text()
