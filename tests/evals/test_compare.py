"""Paired differences of two runs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evals.made_runs import large_run, make_manifest, result, write_run
from treeshare.errors import DataError
from treeshare.evals.compare import compare_runs
from treeshare.evals.judged import JudgedRun
from treeshare.evals.metrics import filtered_table, majority_curve


def judged(path, right, n=4, **changes):
    """``right``: per task id the number of right completions."""
    completions = {task_id: [f"text {i}" for i in range(n)] for task_id in right}
    results = [result(task_id, i, i < c) for task_id, c in right.items() for i in range(n)]
    manifest = make_manifest(completions, n, **changes)
    return JudgedRun.read(write_run(path, completions, results=results, manifest=manifest))


def test_differences_are_paired(tmp_path):
    rng = np.random.default_rng(0)
    hard = {f"P/{i}": int(c) for i, c in enumerate(rng.integers(0, 4, size=40))}
    better = {task_id: c + (i % 2) for i, (task_id, c) in enumerate(hard.items())}
    comparison = compare_runs(
        judged(tmp_path / "a", hard),
        judged(tmp_path / "b", better, sampling={"temperature": 0.2, "top_p": 1.0}, model="big|ger"),
    )
    paired = comparison.pass_at_k[1]
    assert paired.difference.value == pytest.approx(0.125)
    assert paired.difference.value == pytest.approx(paired.second.value - paired.first.value)
    assert paired.difference.standard_error == pytest.approx(
        np.std([0.0, 0.25], ddof=0) / np.sqrt(39), rel=1e-6
    )
    assert paired.difference.standard_error < paired.first.standard_error / 2
    low, high = paired.difference.interval
    assert 0.05 < low < 0.125 < high < 0.2
    assert (comparison.num_better, comparison.num_worse) == (20, 0)
    assert comparison.manifest == [("model", "tiny", "big|ger"), ("sampling.temperature", 0.8, 0.2)]
    text = comparison.table()
    assert "40 problems: the second run is better at 20, worse at 0, equal at 20" in text
    assert "| model | tiny | big\\|ger |" in text
    summary = comparison.summary()
    assert summary["k"]["1"]["difference"]["value"] == pytest.approx(0.125)
    assert summary["problems"]["P/1"] == [hard["P/1"] / 4, better["P/1"] / 4]


def test_chosen_answers_are_compared_too(tmp_path):
    runs = [JudgedRun.read(large_run(tmp_path / f"{n}", n=n)) for n in (8, 16)]
    comparison = compare_runs(*runs)
    assert list(comparison.majority_at_k) == [1, 2, 4, 5, 8]
    assert list(comparison.submissions_at_k) == [1, 10]
    for found, curve in (
        (comparison.majority_at_k, majority_curve),
        (comparison.submissions_at_k, filtered_table),
    ):
        first, second = (curve(run.checked()) for run in runs)
        for k, paired in found.items():
            assert (paired.first.value, paired.second.value) == (first[k].value, second[k].value)
            assert paired.difference.value == pytest.approx(second[k].value - first[k].value)
    text = comparison.table()
    assert "| k | majority@k, first | second | difference |" in text
    assert "| n | n@k, first | second | difference |" in text
    assert comparison.summary()["n@k"]["10"]["second"] == comparison.submissions_at_k[10].second.to_dict()


def test_a_run_compared_with_itself_does_not_differ(tmp_path):
    run = judged(tmp_path / "a", {"P/0": 1, "P/1": 3})
    comparison = compare_runs(run, run)
    assert comparison.manifest == []
    assert {p.difference.value for p in comparison.pass_at_k.values()} == {0.0}
    assert comparison.pass_at_k[1].difference.interval is None
    assert "| undefined |" in comparison.table()


def test_runs_of_different_n_are_compared_as_far_as_both_go(tmp_path):
    comparison = compare_runs(
        judged(tmp_path / "a", {"P/0": 1, "P/1": 2}), judged(tmp_path / "b", {"P/1": 5, "P/0": 3}, n=12)
    )
    assert list(comparison.pass_at_k) == [1, 2, 4]
    assert comparison.problems == {"P/0": (0.25, 0.25), "P/1": (0.5, 5 / 12)}
    assert ("n", 4, 12) in comparison.manifest


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path):
    a = judged(tmp_path / "a", {"P/0": 1, "P/1": 2})
    with pytest.raises(DataError, match="expected one task"):
        compare_runs(a, judged(tmp_path / "b", {"P/0": 1, "P/1": 2}, task="mbpp"))
    for pair in ((a, judged(tmp_path / "c", {"P/0": 1})), (JudgedRun.read(tmp_path / "c"), a)):
        with pytest.raises(DataError, match=r"c has no P/1; expected the same problems"):
            compare_runs(*pair)
    many = judged(tmp_path / "d", {f"P/{i}": 1 for i in range(9)})
    with pytest.raises(DataError, match="P/2, P/3, P/4, P/5, P/6 and 2 more"):
        compare_runs(many, a)
    run, other = (judged(tmp_path / name, {"P/0": 1}, problems_sha256=name * 64) for name in ("e", "f"))
    with pytest.raises(DataError, match="differ in their contents"):
        compare_runs(run, other)
    (tmp_path / "a" / "results.jsonl").unlink()
    with pytest.raises(DataError, match="has no checked completion of P/0, P/1; run `treeshare evaluate`"):
        compare_runs(a, JudgedRun.read(tmp_path / "a"))
