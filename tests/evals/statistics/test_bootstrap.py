"""Bootstrap intervals: against all resamples, against scipy, and by how often they hold the truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from treeshare.errors import ConfigError
from treeshare.evals.statistics.bootstrap import mean_and_error, mean_intervals


def test_it_is_scipys_bca():
    values = np.random.default_rng(3).beta(0.3, 0.7, size=40)
    [(low, high)] = mean_intervals(values[:, None], num_resamples=40_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    # Both ends have the noise of a quantile of 40,000 draws, about one hundredth of the standard error.
    noise = values.std(ddof=1) / math.sqrt(40) / 20
    assert abs(low - theirs.low) < noise
    assert abs(high - theirs.high) < noise


def test_the_resamples_are_what_counting_all_of_them_gives():
    values = np.array([0.0, 0.0, 0.0, 1.0])
    means = sorted(np.mean(draw) for draw in itertools.product(values, repeat=4))
    [(low, high)] = mean_intervals(values[:, None])
    assert low in means
    assert high in means
    assert low <= 0.25 <= high


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        values = rng.binomial(8, rng.beta(0.5, 1.0, size=60)) / 8
        [(low, high)] = mean_intervals(values[:, None], num_resamples=500)
        held += low <= 1 / 3 <= high
    # 95 % of 200 is 190 with a standard deviation of 3.1; the percentile interval of so few is a bit narrow.
    assert 178 <= held <= 199


def test_the_same_seed_gives_the_same_interval_in_any_company():
    values = np.random.default_rng(0).random((30, 3))
    together = mean_intervals(values, seed=5)
    assert together == mean_intervals(values, seed=5)
    assert together != mean_intervals(values, seed=6)
    assert mean_intervals(values[:, 1:2], seed=5)[0] == together[1]


def test_many_problems_need_no_more_memory_than_a_chunk():
    values = np.random.default_rng(0).random((20_000, 1))
    [(low, high)] = mean_intervals(values, num_resamples=250)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(1 / 12 / 20_000), rel=0.3)


def test_where_no_resample_differs_there_is_no_interval():
    assert mean_intervals(np.zeros((5, 1))) == [None]
    assert mean_intervals(np.array([[0.5]])) == [None]
    assert mean_and_error(np.array([0.5])) == (0.5, None)


def test_the_analytic_error_is_where_the_bootstrap_tends_to():
    values = np.random.default_rng(2).random(25)
    drawn = np.random.default_rng(0).choice(values, size=(40_000, 25)).mean(axis=1)
    _, error = mean_and_error(values)
    assert drawn.std() * math.sqrt(25 / 24) == pytest.approx(error, rel=0.02)


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="num_resamples: got 0"):
        mean_intervals(np.zeros((2, 1)), num_resamples=0)
    with pytest.raises(ConfigError, match="confidence: got 95"):
        mean_intervals(np.zeros((2, 1)), confidence=95)
