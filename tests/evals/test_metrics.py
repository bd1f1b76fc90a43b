"""A judged run's figures, and what is said where one is missing."""

from __future__ import annotations

import pytest

from tests.evals.made_runs import large_run, result, write_run
from treeshare.evals.judged import JudgedRun
from treeshare.evals.metrics import calibration_rows, filtered_table, majority_curve, pass_curve


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    return JudgedRun.read(large_run(tmp_path_factory.mktemp("made") / "run")).checked()


def test_pass_at_one_is_the_share_of_right_completions(checked):
    curve = pass_curve(checked)
    shares = [sum(r.passed for _, r in pairs) / len(pairs) for pairs in checked.values()]
    assert curve[1].value == pytest.approx(sum(shares) / len(shares))
    assert list(curve) == list(range(1, 17))
    values = [estimate.value for estimate in curve.values()]
    assert values == sorted(values)


def test_majority_of_one_is_pass_at_one(checked):
    curve = majority_curve(checked)
    assert list(curve) == [1, 2, 4, 5, 8, 10, 16]
    assert curve[1].value == pytest.approx(pass_curve(checked)[1].value)
    assert curve[16].value > curve[1].value


def test_ten_filtered_submissions_are_better_than_one(checked):
    table = filtered_table(checked)
    assert pass_curve(checked)[1].value < table[1].value < table[10].value <= pass_curve(checked)[16].value


def test_all_confidences_are_calibrated(checked):
    rows, notes = calibration_rows(checked)
    assert notes == []
    assert [(row.confidence, row.rescaling) for row in rows] == [
        (kind, rescaling) for kind in ("mean", "product", "tail") for rescaling in (None, "platt", "isotonic")
    ]
    by_name = {(row.confidence, row.rescaling): row.calibration for row in rows}
    assert by_name["mean", "platt"].ece < by_name["mean", None].ece
    assert {c.num_completions for c in by_name.values()} == {384}


def test_what_is_not_known_is_left_out_and_named(tmp_path):
    run = write_run(
        tmp_path / "run",
        {"a": ["x", {"completion": "", "token_ids": [], "cumulative_logprob": 0.0}], "b": ["y", "z"]},
        results=[result("a", 0, True), result("a", 1, False), result("b", 0, False)],
    )
    checked = JudgedRun.read(run).checked()
    assert majority_curve(checked) == {}
    assert filtered_table(checked) == {}
    assert list(pass_curve(checked)) == [1]
    rows, notes = calibration_rows(checked)
    assert rows[0].calibration.num_completions == 2
    assert notes == ["tail is missing: a completion 0: has no logprobs; sample with --logprobs 0."]
    assert calibration_rows({}) == ([], ["No completion has tokens and a verdict."])
    assert pass_curve({}) == {}
    assert majority_curve({}) == {}
    assert filtered_table({}) == {}
