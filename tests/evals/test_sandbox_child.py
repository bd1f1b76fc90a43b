"""What is left of a sandboxed program, and what is said of one that does not start."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from treeshare.errors import SandboxUnavailableError
from treeshare.evals.evaluate import evaluate_completions
from treeshare.evals.sandbox import BubblewrapSandbox, Limits, OutsideTests, SandboxError, Verdict
from treeshare.evals.verdict_cache import VerdictCache
from treeshare.tasks.registry import get_task

PROGRAMS = (
    "pass",
    "1 / 0",
    "import os\nos._exit(0)",
    "import os\nos.kill(os.getpid(), 9)",
    "while True: pass",
)
"""One for each way to end: by itself, well and badly, early, by a signal, by the clock."""

RUN = """
import json, os, subprocess, sys
from pathlib import Path
from treeshare.evals.sandbox import BACKENDS, Limits, OutsideTests
sandbox, programs = BACKENDS[sys.argv[1]](), json.loads(sys.argv[2])
own = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
for program in programs:
    sandbox.run(program, limits=Limits(wall_s=0.3))
    sandbox.examine(program, OutsideTests(source="f()", names=("f",)), limits=Limits(wall_s=0.3))
sandbox.close()
states = {}
for place in Path("/proc").glob("[0-9]*/stat"):
    states[int(place.parent.name)] = place.read_text().rpartition(")")[2].split()[0]
zombies = [pid for pid, state in states.items() if state == "Z" and pid != own.pid]
print(json.dumps([zombies, own.wait()]))
"""
SLEEPING = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
"""A process 1 that waits for its own child only."""


def adopts():
    found = ctypes.c_int(0)
    ctypes.CDLL(None).prctl(37, ctypes.byref(found), 0, 0, 0)
    return bool(found.value)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param([], id="as process 1", marks=pytest.mark.slow),
        pytest.param([sys.executable, "-c", SLEEPING], id="behind process 1"),
    ],
)
def test_no_zombie_is_left_where_process_1_does_not_wait(sandbox, before):
    front = ["unshare", *(["--map-root-user"] * (os.geteuid() != 0)), "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*front, "true"], check=False).returncode:
        pytest.skip("no process namespace to be had")
    inner = [sys.executable, "-c", RUN, sandbox.name, json.dumps(PROGRAMS)]
    ran = subprocess.run([*front, *before, *inner], capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == [[], 3]


def test_orphans_are_taken_while_a_program_runs_only(sandbox):
    """The caller's process is as it was before."""
    sandbox.release()
    before = adopts()
    for program in PROGRAMS[:-1]:
        sandbox.run(program, limits=Limits(wall_s=20.0))
        assert adopts() == before
    tests = OutsideTests(source="assert f() == 1", names=("f",))
    assert sandbox.examine("def f(): return 1", tests).verdict is Verdict.PASSED
    sandbox.release()
    assert adopts() == before


@pytest.fixture
def broken_bwrap(monkeypatch, tmp_path):
    """Puts a script in bubblewrap's place."""

    def put(script):
        path = tmp_path / "bwrap"
        path.write_text(f"#!/bin/sh\necho x >> {tmp_path}/tries\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return BubblewrapSandbox()

    try:
        BubblewrapSandbox()
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    return put


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 7", "the program did not start (exit status 7 after "),
        ("echo 'bwrap: no room' >&2; exit 1", "bwrap: no room (exit status 1 after "),
        ("kill -9 $$", "the program did not start (killed by SIGKILL after "),
    ],
)
def test_a_start_that_fails_says_how_and_is_tried_twice(broken_bwrap, tmp_path, script, said):
    with pytest.raises(SandboxError) as caught:
        broken_bwrap(script).run("pass")
    message = str(caught.value)
    assert message.startswith(f"sandbox: {said}")
    assert " s); the first try: " in message
    assert "\n" not in message
    assert (tmp_path / "tries").read_text() == "x\n" * 2


def test_a_start_that_fails_once_is_no_failure(broken_bwrap, tmp_path):
    real = shutil.which("bwrap")
    sandbox = broken_bwrap(f'[ $(wc -l < {tmp_path}/tries) -gt 1 ] || exit 1\nexec {real} "$@"')
    assert sandbox.run("print(1)", limits=Limits(wall_s=20.0)).verdict is Verdict.PASSED
    assert (tmp_path / "tries").read_text() == "x\n" * 2
    sandbox.close()


def test_an_evaluation_says_that_verdicts_are_kept(broken_bwrap, tmp_path):
    task = get_task("humaneval", own_code=False)
    solution = "    return 1\n"
    record = {"task_id": "T/0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": solution}
    record["test"] = "def check(candidate):\n    assert candidate() == 1\n"
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(record) + "\n")
    records = [{"task_id": "T/0", "completion_index": 0, "completion": solution}]
    expected = r"exit status 7 .*; verdicts so far are kept: evaluate again"
    problems, sandbox = task.load(str(data)), broken_bwrap("exit 7")
    with VerdictCache(tmp_path / "verdicts.jsonl") as cache, pytest.raises(SandboxError, match=expected):
        evaluate_completions(task, problems, records, sandbox, workers=1, limits=Limits(), cache=cache)


def test_a_start_that_never_comes_is_ended(broken_bwrap, monkeypatch):
    monkeypatch.setattr("treeshare.evals.sandbox.launcher._START_S", 0.2)
    monkeypatch.setattr("treeshare.evals.sandbox.launcher._ENDING_S", 0.1)
    with pytest.raises(SandboxError, match=r"did not start \(not ready after 0 s, killed\)"):
        broken_bwrap("exec sleep 100").run("pass")
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL  # no handler of the caller's is replaced
