"""``report``, ``compare`` and ``export`` as a user calls them."""

from __future__ import annotations

import json

import pytest

from tests.evals.made_runs import large_run, make_manifest, result, write_run


@pytest.fixture
def run(tmp_path):
    return large_run(tmp_path / "run", num_problems=3, n=4)


def test_a_report_is_written_into_the_run_or_where_one_says(cli, run, tmp_path):
    done = cli("report", run)
    size = (run / "report.html").stat().st_size
    assert (done.status, done.err) == (0, "")
    assert done.out == f"written: {run / 'report.html'} ({size / 1024:,.0f} KiB)\n"
    assert cli("report", run, "--out", tmp_path / "a.html").status == 0
    assert (tmp_path / "a.html").read_bytes() == (run / "report.html").read_bytes()


def test_a_comparison_is_printed_and_written(cli, run, tmp_path):
    done = cli("compare", run, run, "--json", tmp_path / "c.json")
    assert done.status == 0
    assert "3 problems: the second run is better at 0, worse at 0, equal at 3" in done.out
    assert json.loads((tmp_path / "c.json").read_bytes())["k"]["4"]["difference"]["value"] == 0


@pytest.mark.parametrize("kind", ["human-eval", "parquet", "datasets"])
def test_an_export_is_written(cli, run, tmp_path, kind):
    done = cli("export", run, "--format", kind, "--out", tmp_path / "x")
    assert (done.status, done.err) == (0, "")
    assert done.out == f"written: {tmp_path / 'x'} (12 completions)\n"
    assert (tmp_path / "x").exists()


def test_an_export_of_programs_needs_the_problems(cli, run, tmp_path):
    for kind in ("evalplus", "bigcode"):
        refusal = cli("export", run, "--format", kind, "--out", tmp_path / "x").refusal
        assert "Made/0: the task has no such problem; give the run's --data" in refusal
    few = write_run(
        tmp_path / "few", {"HumanEval/0": ["    pass\n"]}, results=[result("HumanEval/0", 0, False)]
    )
    done = cli("export", few, "--format", "evalplus", "--out", tmp_path / "x")
    assert done.status == 0
    [line] = (tmp_path / "x").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["solution"].endswith("    pass\n")
    assert "def has_close_elements" in json.loads(line)["solution"]


def test_mistakes_are_one_line(cli, run, tmp_path):
    refusal = cli("export", run, "--format", "csv", "--out", tmp_path / "x").refusal
    assert "Invalid value for '--format': 'csv' is not one of 'human-eval'" in refusal
    assert "expected an existing directory" in cli("report", tmp_path / "none").refusal
    assert "expected an existing directory" in cli("compare", run, tmp_path / "none").refusal
    assert "cannot write" in cli("report", run, "--out", tmp_path).refusal
    assert "cannot write" in cli("report", run, "--out", tmp_path / "no" / "x.html").refusal
    (run / "results.jsonl").write_bytes(b"\xff\n")
    assert "results.jsonl, line 1: not JSON" in cli("report", run).refusal
    (run / "results.jsonl").unlink()
    assert "run `treeshare evaluate` on it first" in cli("compare", run, run).refusal


def test_a_run_directory_does_not_choose_code_to_run(cli, tmp_path):
    code = tmp_path / "own.py"
    code.write_text("raise SystemExit(7)\n", encoding="utf-8")
    manifest = make_manifest(["a"], 1, task=f"{code}:Own")
    run = write_run(tmp_path / "run", {"a": ["x"]}, manifest=manifest)
    refusal = cli("export", run, "--format", "bigcode", "--out", tmp_path / "x").refusal
    assert f"code that runs only if you name it; give --task {code}:Own" in refusal
    assert cli("report", run).status == 0
