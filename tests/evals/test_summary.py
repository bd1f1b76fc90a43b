"""What an evaluated run comes to."""

from __future__ import annotations

import json

import pytest

from tests.evals.made_runs import large_run, make_manifest, result, write_run
from treeshare.evals.judged import JudgedRun
from treeshare.evals.metrics import calibration_rows, filtered_table, majority_curve, pass_curve
from treeshare.evals.report.sections import verdict_section
from treeshare.evals.summary import UNDECIDED_NOTE, RunSummary, calibration_dict


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return JudgedRun.read(large_run(tmp_path_factory.mktemp("made") / "run"))


def test_all_figures_are_there(run):
    found = json.loads(json.dumps(RunSummary.of(run).to_dict()))
    checked = run.checked()
    for name, curve in (
        ("k", pass_curve(checked)),
        ("majority@k", majority_curve(checked)),
        ("n@k", filtered_table(checked)),
    ):
        assert found[name]
        for k, entry in found[name].items():
            estimate = curve[int(k)]
            assert entry == {
                "value": estimate.value,
                "se": estimate.standard_error,
                "interval": list(estimate.interval),
            }
    assert (found["num_problems"], found["num_completions"]) == (24, 384)
    assert found["num_correct"] == sum(correct for _, correct in run.counts().values())
    assert sum(found["verdicts"].values()) == 384
    assert found["run"]["sampling"] == {"temperature": 0.8, "top_p": 1.0}
    assert (found["run"]["n"], found["run"]["seed"], found["run"]["model"]) == (16, 0, "tiny")


def test_the_table_says_how_the_run_was_made(run):
    text = RunSummary.of(run).table()
    assert text.startswith(
        "humaneval, tiny, float32: n 16, seed 0, temperature 0.8, shots 0\n384 completions"
    )
    for head in ("| k | pass@k |", "| k | majority@k |", "| n | n@k, filtered and clustered |"):
        assert head in text


def test_what_a_task_has_no_figures_for_is_left_out(tmp_path):
    manifest = make_manifest(["a", "b"], 2)
    results = [result("a", 0, True), result("a", 1, False)]
    path = write_run(tmp_path / "run", {"a": ["x", "y"], "b": ["z"]}, results=results, manifest=manifest)
    summary = RunSummary.of(JudgedRun.read(path))
    assert summary.to_dict().keys().isdisjoint({"majority@k", "n@k"})
    text = summary.table()
    assert "2 completions of 1 problem, 1 right" in text
    assert "| 1 | 50.00 % | undefined | undefined |" in text
    assert "majority" not in text


def test_calibration_for_json(run):
    found = json.loads(json.dumps(calibration_dict(run.checked())))
    rows, notes = calibration_rows(run.checked())
    assert [entry["brier"] for entry in found["calibration"]] == [row.calibration.brier for row in rows]
    assert found["calibration_notes"] == notes == []


def test_undecided_completions_are_explained(tmp_path):
    undecided = result("a", 0, False) | {"verdict": "undecided"}
    for name, results in (("some", [undecided]), ("none", [result("a", 0, False)])):
        path = write_run(tmp_path / name, {"a": ["x"]}, results=results)
        run = JudgedRun.read(path)
        said = {UNDECIDED_NOTE in text for text in (RunSummary.of(run).table(), verdict_section(run))}
        assert said == {name == "some"}
