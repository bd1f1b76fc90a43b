"""``treeshare sample --ray`` with two workers: the same lines as one process, whoever is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.cli.conftest import cli, data, finished, forked, lines_of, problems, text_model
from tests.cli.reasoning_model import END, saved_reasoning_model
from tests.processes import child_ids

if importlib.util.find_spec("ray") is None:
    pytest.skip("pip install treeshare[ray]", allow_module_level=True)

__all__ = ["cli", "data", "problems", "text_model"]

LONGEST_S = 120


@pytest.fixture
def arguments(text_model, data):
    options = {"--data": data, "--model": text_model, "--max-tokens": 120, "--threads": 1, "-n": 60}
    return ["sample", "--task", "humaneval", *(word for option in options.items() for word in option)]


def below(pid):
    """Ids of all processes that have ``pid`` above them."""
    found = []
    for child in _children(pid):
        found += [child, *below(child)]
    return found


def _children(pid):
    try:
        return child_ids(pid)
    except OSError:
        return []


def workers(pid):
    """Ids of the run's workers that compute."""
    titles = {}
    for child in below(pid):
        try:
            titles[child] = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
    return [
        child
        for child, title in titles.items()
        if title.startswith((b"ray::Worker.start", b"ray::Worker.advance"))
    ]


def waited_for(condition):
    until = time.monotonic() + LONGEST_S
    while not (value := condition()):
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)
    return value


def has_lines(out):
    journal = out / "samples.jsonl"
    return journal.exists() and journal.stat().st_size > 0


def all_gone(pids):
    return all(not Path(f"/proc/{pid}").exists() for pid in pids)


def one_process(arguments, out, like):
    """A run by one process, begun with another's manifest: what folds was measured once for both."""
    out.mkdir()
    (out / "manifest.json").write_bytes((like / "manifest.json").read_bytes())
    return forked(*arguments, "--out", out)


@pytest.mark.slow
def test_a_worker_is_killed(arguments, tmp_path):
    log, out = tmp_path / "log", tmp_path / "ray"
    child = forked(*arguments, "--out", out, "--ray", "--ray-workers", 2, stderr=log)
    waited_for((out / "manifest.json").exists)
    whole = one_process(arguments, tmp_path / "whole", out)
    waited_for(lambda: has_lines(out))
    started = below(child.pid)
    victims = waited_for(lambda: workers(child.pid))
    os.kill(victims[0], signal.SIGKILL)
    assert len(lines_of(out)) < 180
    assert finished(child) == finished(whole) == 0, log.read_text()
    assert "has ended" in log.read_text()
    assert sorted(lines_of(out)) == sorted(lines_of(tmp_path / "whole"))
    assert waited_for(lambda: all_gone(started))
    assert "2 workers of 1 threads" in json.loads((out / "manifest.json").read_bytes())["workers"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_driver_is_ended(arguments, tmp_path, how):
    """No process of the cluster stays, and one process goes on with what is there."""
    child = forked(*arguments, "--out", tmp_path / "ray", "--ray", "--ray-workers", 2)
    waited_for(lambda: has_lines(tmp_path / "ray"))
    started = below(child.pid)
    assert len(started) > 4
    os.kill(child.pid, how)
    assert finished(child) == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 15}[how]
    held = lines_of(tmp_path / "ray")
    assert waited_for(lambda: all_gone(started))
    whole = one_process(arguments, tmp_path / "whole", tmp_path / "ray")
    assert finished(forked(*arguments, "--out", tmp_path / "ray")) == finished(whole) == 0
    assert lines_of(tmp_path / "ray")[: len(held) - 1] == held[:-1]
    assert sorted(lines_of(tmp_path / "ray")) == sorted(lines_of(tmp_path / "whole"))


CONSTRAINED = {
    "a pattern": ["--regex", "[ab]{3,30}c", "--reasoning-parser", "none"],
    "masks": [
        "--allowed-token-id", "70", "--allowed-token-id", "71", "--bad-word", "dd",
        "--logit-bias", '{"71": 1}',
    ],
    "a thinking budget": [
        "--chat", "--chat-template-kwargs", '{"thinking": true}', "--thinking-token-budget", "5",
        "--max-tokens", "40",
    ],
    "a pattern behind the reasoning": [
        "--chat", "--chat-template-kwargs", '{"thinking": true}', "--thinking-token-budget", "5",
        "--max-tokens", "40", "--regex", "[ab]{3,9}",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CONSTRAINED)
def test_what_constrains_completions(cli, data, tmp_path, name):
    """Grammars, masks and budgets on workers: one process's lines, and what was asked for."""
    if "pattern" in name:
        pytest.importorskip("llguidance", reason="llguidance is not installed")
    model = saved_reasoning_model(tmp_path)
    words = ["--data", data, "--model", model, "--max-tokens", 40, "--threads", 1, "-n", 12]
    words = ["sample", "--task", "humaneval", *words, *CONSTRAINED[name]]
    result = cli(*words, "--out", tmp_path / "ray", "--ray", "--ray-workers", 2)
    assert result.status == 0, result.err
    whole = one_process(words, tmp_path / "whole", tmp_path / "ray")
    assert finished(whole) == 0
    assert sorted(lines_of(tmp_path / "ray")) == sorted(lines_of(tmp_path / "whole"))
    records = [json.loads(line) for line in lines_of(tmp_path / "ray")]
    assert len(records) == 36
    if name == "a pattern":
        assert all(
            re.fullmatch("[ab]{3,30}c", r["completion"]) or r["finish_reason"] == "length" for r in records
        )
    elif name == "masks":
        assert all(set(record["token_ids"]) <= {70, 71, 1} for record in records)
    else:
        long = [record["token_ids"] for record in records if len(record["token_ids"]) > 6]  # no early end
        assert long
        assert all(END in token_ids[:7] for token_ids in long)


def test_mistakes(cli, arguments, tmp_path):
    assert (
        "--ray-workers, --ray-threads: got no --ray"
        in cli(*arguments, "--out", tmp_path / "x", "--ray-workers", 2).refusal
    )
    assert not (tmp_path / "x").exists()
