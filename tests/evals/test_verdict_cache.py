"""Verdicts on disk: whole after any kill, torn lines passed over, other files refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from treeshare.errors import DataError
from treeshare.evals.check_result import CheckResult
from treeshare.evals.sandbox import Verdict
from treeshare.evals.verdict_cache import VerdictCache

RESULT = CheckResult(verdict=Verdict.RUNTIME_ERROR, detail="ValueError: \u00e9")


def test_what_was_added_is_there_again(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    with VerdictCache(path) as cache:
        assert cache.get("a") is None
        cache.add("a", RESULT)
        cache.add("a", CheckResult(verdict=Verdict.PASSED, detail=""))  # the first one stays
    with VerdictCache(path) as cache:
        assert (cache.get("a"), len(cache)) == (RESULT, 1)
    assert len(path.read_bytes().splitlines()) == 1


def test_what_else_is_known_of_a_completion_is_kept(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    result = CheckResult(verdict=Verdict.PASSED, detail="", passed_public=True, signature="ab")
    with VerdictCache(path) as cache:
        cache.add("a", result)
    with VerdictCache(path) as cache:
        assert cache.get("a") == result


def test_a_torn_line_costs_one_verdict(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    with VerdictCache(path) as cache:
        cache.add("a", RESULT)
        cache.add("b", RESULT)
    path.write_bytes(path.read_bytes()[:-9])
    with VerdictCache(path) as cache:
        assert (cache.get("a"), cache.get("b")) == (RESULT, None)
        cache.add("c", RESULT)
    with VerdictCache(path) as cache:
        assert (cache.get("a"), cache.get("b"), cache.get("c")) == (RESULT, None, RESULT)


@pytest.mark.parametrize("content", [b"x", b"{}\n", b'{"task_id": 1}\n', b"\xff\x00\n", b"[]\n"])
def test_other_files_are_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"verdicts: .*other contains none, expected JSON lines of treeshare"):
        VerdictCache(path)
    assert path.read_bytes() == content


def test_what_cannot_be_opened_or_written(tmp_path):
    with pytest.raises(DataError, match=r"cannot open .*: Is a directory"):
        VerdictCache(tmp_path)
    full = VerdictCache(tmp_path / "full")
    os.dup2(os.open("/dev/full", os.O_WRONLY), full._file)
    with pytest.raises(DataError, match=r"verdicts: cannot write .*full: No space left on device"):
        full.add("a", RESULT)


def test_threads_write_whole_lines(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    with VerdictCache(path) as cache, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cache.add(f"{number}", RESULT), range(500)))
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert sorted(line["key"] for line in lines) == sorted(map(str, range(500)))


ADD_FOR_EVER = """
import itertools, pathlib, sys
from treeshare.evals.check_result import CheckResult
from treeshare.evals.sandbox import Verdict
from treeshare.evals.verdict_cache import VerdictCache
cache = VerdictCache(pathlib.Path(sys.argv[1]))
for n in itertools.count():
    cache.add(str(n), CheckResult(verdict=Verdict.PASSED, detail="x" * 300))
    print(n, flush=True)
"""


def test_kill_9_loses_no_verdict(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    process = subprocess.Popen([sys.executable, "-c", ADD_FOR_EVER, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"0\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    told = process.stdout.read().split(b"\n")
    process.stdout.close()
    process.wait()
    last = int(told[-2])
    with VerdictCache(path) as cache:
        assert len(cache) >= last + 1
        assert all(cache.get(str(number)) for number in range(last + 1))


def test_keys_depend_on_everything():
    assert len({VerdictCache.key(text) for text in ("a", "b", "a\n", "\udcff")}) == 4
