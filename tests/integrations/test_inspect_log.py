"""A run of a plus task as Inspect's log: its own reader and its scores agree with ``evaluate``."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.evals.made_runs import make_manifest, result, write_run
from treeshare.errors import ConfigError, DataError
from treeshare.evals.judged import JudgedRun
from treeshare.integrations.inspect_log import export_inspect

inspect_log = pytest.importorskip("inspect_ai.log")

PASSED = {"HumanEval/0": [True, False, True, True], "HumanEval/32": [False] * 4, "Mbpp/2": [True, False]}
"""Whose mean is (3/4 + 0 + 1/2) / 3."""


@pytest.fixture
def run(tmp_path):
    completions = {task_id: [f"return {i}\n" for i in range(len(own))] for task_id, own in PASSED.items()}
    results = [result(task_id, i, passed) for task_id, own in PASSED.items() for i, passed in enumerate(own)]
    manifest = make_manifest(completions, 4, task="humaneval-plus")
    return JudgedRun.read(write_run(tmp_path / "run", completions, results=results, manifest=manifest))


@pytest.mark.parametrize("suffix", [".json", ".eval"])
def test_inspect_reads_the_log(run, tmp_path, suffix):
    out = tmp_path / f"log{suffix}"
    assert export_inspect(run, out, {"HumanEval/0": "def f():\n"}) == 10
    log = inspect_log.read_eval_log(str(out))
    assert (log.status, log.eval.task, log.eval.model) == ("success", "humaneval-plus", "none/tiny")
    scores = {(sample.id, sample.epoch): sample.scores["treeshare"].value for sample in log.samples}
    assert scores == {
        (task_id, i + 1): "C" if passed else "I"
        for task_id, own in PASSED.items()
        for i, passed in enumerate(own)
    }
    assert log.results.scores[0].metrics["mean"].value == pytest.approx((3 / 4 + 0 + 1 / 2) / 3)
    samples = {(sample.id, sample.epoch): sample for sample in log.samples}
    first = samples["HumanEval/0", 1]
    assert (first.input, first.output.completion) == ("def f():\n", "return 0\n")
    assert samples["HumanEval/0", 2].scores["treeshare"].explanation == "runtime error"


def test_inspect_scores_the_log(run, tmp_path):
    """Its own scoring, as ``inspect score`` does it, of the answers in the log, beside ours."""
    from inspect_ai import score
    from inspect_ai.scorer import Score, accuracy, scorer

    @scorer(metrics=[accuracy()])
    def ends_in_zero():
        async def judge(state, target):
            return Score(value="C" if state.output.completion.endswith("0\n") else "I")

        return judge

    export_inspect(run, tmp_path / "log.json")
    log = inspect_log.read_eval_log(str(tmp_path / "log.json"))
    scored = score(log, ends_in_zero(), epochs_reducer="mean", action="append", display="none")
    asyncio.set_event_loop(None)
    assert len(scored.samples) == 10
    assert {sample.scores["ends_in_zero"].value for sample in scored.samples if sample.epoch == 1} == {"C"}
    assert all("treeshare" in sample.scores for sample in scored.samples)


def test_a_run_that_was_not_evaluated_has_no_scores(tmp_path):
    run = JudgedRun.read(write_run(tmp_path / "run", {"a": ["x"]}))
    export_inspect(run, tmp_path / "log.json")
    log = inspect_log.read_eval_log(str(tmp_path / "log.json"))
    assert log.results is None
    assert log.samples[0].scores is None


def test_what_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=re.escape("expected a name that ends in .json or .eval")):
        export_inspect(run, Path("log.txt"))
    with pytest.raises(DataError, match="cannot write"):
        export_inspect(run, tmp_path / "run" / "samples.jsonl" / "log.json")
