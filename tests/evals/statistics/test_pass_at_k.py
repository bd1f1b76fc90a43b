"""pass@k against exact rational arithmetic and against counting all draws."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from treeshare.errors import ConfigError
from treeshare.evals.statistics.pass_at_k import (
    curve_ks,
    estimates,
    pass_at_each_k,
    pass_at_k,
    pass_at_k_matrix,
)


def exact(n, c, k):
    return 1 - Fraction(math.comb(n - c, k), math.comb(n, k))


@pytest.mark.parametrize("n", range(1, 9))
def test_it_is_the_share_of_draws_with_a_right_one(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        draws = list(itertools.combinations(range(n), k))
        share = sum(any(i < c for i in draw) for draw in draws) / len(draws)
        assert pass_at_k(n, c, k) == pytest.approx(share, rel=1e-14, abs=0)


@examples(200)
@given(st.data())
def test_it_equals_rational_arithmetic(data):
    n = data.draw(st.integers(1, 2000))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact(n, c, k)), rel=1e-13, abs=0)


@pytest.mark.parametrize(
    ("c", "k"),
    [(0, 1), (1, 1), (1, 100_000), (1, 50_000), (50_000, 1), (30, 3_000), (3_000, 30), (10, 10), (99_999, 1)],
)
def test_it_is_stable_for_a_hundred_thousand_completions(c, k):
    assert pass_at_k(100_000, c, k) == pytest.approx(float(exact(100_000, c, k)), rel=1e-12, abs=0)


def test_its_ends():
    assert str(pass_at_k(10, 0, 5)) == "0.0"
    assert pass_at_k(10, 6, 5) == 1.0
    assert pass_at_k(10, 10, 1) == 1.0
    assert pass_at_k(4, 1, 1) == 0.25


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6)])
def test_what_is_out_of_range_is_refused(n, c, k):
    with pytest.raises(ConfigError, match="expected from"):
        pass_at_k(n, c, k)


def test_the_table_is_the_mean_over_problems_and_leaves_out_what_is_undefined():
    counts = [(10, 3), (8, 0), (12, 12)]
    table = pass_at_each_k(counts)
    assert list(table) == [1, 2, 4, 5, 8]
    for k, estimate in table.items():
        mean = sum(exact(n, c, k) for n, c in counts) / 3
        assert estimate.value == pytest.approx(float(mean), rel=1e-14)
        low, high = estimate.interval
        assert 0 <= low < estimate.value < high <= 1
    assert pass_at_each_k([]) == {}
    assert list(pass_at_each_k(counts, [3, 9])) == [3]


def test_the_standard_error_is_that_of_a_mean():
    estimate = pass_at_each_k([(4, 1), (4, 2), (4, 4)])[1]
    assert estimate.standard_error == pytest.approx(np.std([0.25, 0.5, 1.0], ddof=1) / math.sqrt(3))
    alone = pass_at_each_k([(4, 1)])[1]
    assert (alone.standard_error, alone.interval) == (None, None)


def test_the_matrix_has_a_row_for_each_problem():
    matrix = pass_at_k_matrix([(4, 1), (4, 1), (6, 0)], [1, 2])
    assert matrix.tolist() == [[0.25, 0.5], [0.25, 0.5], [0.0, 0.0]]
    assert estimates(matrix)[0].value == pytest.approx(0.5 / 3)


def test_a_curve_has_all_points_or_points_even_on_a_log_scale():
    assert curve_ks(5) == [1, 2, 3, 4, 5]
    points = curve_ks(100_000)
    assert points[0] == 1
    assert points[-1] == 100_000
    assert 30 < len(points) <= 48
