"""Confidences and calibration: by hand, against scikit-learn, and on outcomes whose chances are known."""

from __future__ import annotations

import math
import re
import sys

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from treeshare.errors import ConfigError, DataError, ShapeError
from treeshare.evals.statistics.calibration import calibrate, rescale
from treeshare.evals.statistics.confidence import log_confidence, token_logprobs
from treeshare.installation import how_to_add
from treeshare.runs import Record


def record(of_tokens, **extra):
    return Record(
        task_id="p",
        completion_index=0,
        completion="",
        token_ids=list(range(len(of_tokens))),
        finish_reason="stop",
        cumulative_logprob=sum(of_tokens),
        **extra,
    )


def with_logprobs(logprobs):
    entries = [[[99, -0.1, 1], [i, logprob, 2]] for i, logprob in enumerate(logprobs)]
    return record(logprobs, logprobs=entries)


def test_confidences_by_hand():
    logprobs = [math.log(p) for p in (0.9, 0.5, 0.25, 0.8)]
    assert math.exp(log_confidence(record(logprobs), "product")) == pytest.approx(0.9 * 0.5 * 0.25 * 0.8)
    assert math.exp(log_confidence(record(logprobs), "mean")) == pytest.approx(
        (0.9 * 0.5 * 0.25 * 0.8) ** 0.25
    )
    assert math.exp(log_confidence(with_logprobs(logprobs), "tail")) == pytest.approx(0.25)
    many = [math.log(0.5)] * 10 + [math.log(0.1)] * 2
    assert math.exp(log_confidence(with_logprobs(many), "tail")) == pytest.approx(0.1)
    assert token_logprobs(with_logprobs(logprobs)) == logprobs


def test_a_rounding_above_zero_is_certainty():
    assert log_confidence(record([1e-9]), "product") == 0.0


def test_what_cannot_be_known_is_refused_with_the_remedy():
    with pytest.raises(DataError, match="p completion 0: has no logprobs; sample with --logprobs 0"):
        log_confidence(record([-0.5]), "tail")
    with pytest.raises(DataError, match="has no tokens"):
        log_confidence(record([]), "mean")
    with pytest.raises(ConfigError, match=r"expected mean \| product \| tail"):
        log_confidence(record([-0.5]), "median")


@pytest.mark.parametrize(
    "bad", [[], [[[5, -0.5, 1]]], [7], "x", [[["0", -0.5, 1]]], [[[0, None, 1]]], {"a": 1}]
)
def test_logprobs_that_do_not_fit_are_refused(bad):
    with pytest.raises(DataError, match="logprobs do not fit the tokens"):
        log_confidence(record([-0.5], logprobs=bad), "tail")


def test_calibration_by_hand():
    confidences = np.array([0.05, 0.15, 0.95, 1.0, 0.5])
    right = np.array([False, True, True, True, False])
    result = calibrate(confidences, right)
    gaps = [0.05, 0.85, 2 * (1 - 0.975), 0.5]
    assert result.ece == pytest.approx(sum(gaps) / 5)
    assert result.brier == pytest.approx(brier_score_loss(right, confidences))
    assert result.base_rate == 0.6
    assert result.skill_score == pytest.approx(1 - result.brier / 0.24)
    assert [b.count for b in result.bins] == [1, 1, 0, 0, 0, 1, 0, 0, 0, 2]
    last = result.bins[-1]
    assert (last.confidence, last.accuracy) == (pytest.approx(0.975), 1.0)
    assert last.interval == (pytest.approx(0.342380, rel=1e-5), 1.0)  # 2 of 2, from a table
    assert result.bins[2].interval is None


def test_always_giving_the_base_rate_has_no_skill_and_no_error():
    right = np.array([True, False, False, False])
    result = calibrate(np.full(4, 0.25), right)
    assert result.skill_score == pytest.approx(0.0, abs=1e-15)
    assert result.ece == 0.0


@pytest.mark.parametrize("outcome", [True, False])
def test_skill_is_undefined_where_all_are_alike(outcome):
    result = calibrate(np.array([0.5, 0.5]), np.array([outcome, outcome]))
    assert result.skill_score is None
    assert result.brier == 0.25


@pytest.fixture(scope="module")
def overconfident():
    """Outcomes of known chances, with scores that are those chances' log-odds, stretched and moved."""
    rng = np.random.default_rng(0)
    problems = np.repeat(np.arange(200), 10)
    odds = np.repeat(rng.normal(-1, 1.5, size=200), 10) + rng.normal(0, 0.5, size=2000)
    chances = 1 / (1 + np.exp(-odds))
    stated = 1 / (1 + np.exp(-(2 * odds + 3)))
    return np.log(stated), rng.random(2000) < chances, problems.tolist(), chances


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_rescaling_finds_the_chances_again(overconfident, method):
    logs, right, problems, chances = overconfident
    before = calibrate(np.exp(logs), right)
    rescaled = rescale(logs, right, problems, method)
    after = calibrate(rescaled, right)
    assert before.ece > 0.2
    assert after.ece < 0.05
    assert after.skill_score > 0.15 > before.skill_score
    # Root of the mean square error of the chances: the fit sees 1600 outcomes.
    assert math.sqrt(((rescaled - chances) ** 2).mean()) < (0.02 if method == "platt" else 0.06)


def test_a_problem_never_helps_to_rescale_itself():
    """All of a problem's outcomes are alike, and its score is its own: a leak would make this perfect."""
    rng = np.random.default_rng(1)
    outcomes = rng.random(40) < 0.5
    problems = np.repeat(np.arange(40), 25)
    right = outcomes[problems]
    logs = -(problems + 1.0)
    assert calibrate(rescale(logs, right, problems.tolist(), "isotonic"), right).skill_score < 0.2


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_one_class_certainties_and_extremes_are_fine(method):
    logs = np.array([0.0, -1e-12, -3000.0, -2.0])
    for right in (np.zeros(4, bool), np.ones(4, bool), np.array([True, False, False, True])):
        rescaled = rescale(logs, right, ["a", "b", "c", "d"], method)
        assert np.isfinite(rescaled).all()
        assert ((rescaled >= 0) & (rescaled <= 1)).all()


def test_the_same_seed_gives_the_same_folds(overconfident):
    logs, right, problems, _ = overconfident
    first = rescale(logs, right, problems, "platt", seed=1)
    assert (first == rescale(logs, right, problems, "platt", seed=1)).all()
    assert (first != rescale(logs, right, problems, "platt", seed=2)).any()


def test_what_does_not_fit_is_refused():
    half, right = np.array([0.5]), np.array([True])
    with pytest.raises(ShapeError, match="same length"):
        calibrate(np.array([0.5, 0.5]), right)
    with pytest.raises(ShapeError, match="at least 1"):
        calibrate(np.array([]), np.array([], bool))
    with pytest.raises(ConfigError, match="outside of"):
        calibrate(np.array([np.nan]), right)
    with pytest.raises(ConfigError, match="num_bins: got 0"):
        calibrate(half, right, num_bins=0)
    with pytest.raises(ConfigError, match="got 1 problems and 5 folds"):
        rescale(-half, right, ["a"], "platt")
    with pytest.raises(ShapeError, match="groups: got 2"):
        rescale(-half, right, ["a", "b"], "platt")
    with pytest.raises(ConfigError, match=r"platt \| isotonic"):
        rescale(-half, right, ["a"], "temperature")


def test_without_scikit_learn_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.isotonic", None)
    with pytest.raises(ConfigError, match="scikit-learn is not installed; " + re.escape(how_to_add("evals"))):
        rescale(np.array([-1.0, -2.0]), np.array([True, False]), ["a", "b"], "isotonic")
