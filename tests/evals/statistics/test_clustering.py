"""Filtered n@k against trying every order of clusters and every choice of members."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from treeshare.errors import ConfigError
from treeshare.evals.statistics.clustering import Candidate, submissions_at_k


def candidate(passed, signature, passed_public=None):
    return Candidate(passed=passed, passed_public=passed_public, signature=signature)


def submitted(order, num_submissions):
    """Submissions when clusters and members come in the order of ``order``, larger clusters first."""
    clusters = {}
    for number, program in order:
        if program.passed_public is not False:
            clusters.setdefault(number if program.signature is None else program.signature, []).append(
                program
            )
    ranked = sorted(clusters.values(), key=len, reverse=True)
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*ranked))
    return [program for program in rounds if program is not None][:num_submissions]


def counted(candidates, num_submissions, k):
    """Over all orders of all draws: clusters of equal size and their members come in random order.

    Clusters are in the order of their first members, which for clusters of equal size is a fair order.
    """
    solved = [
        any(program.passed for program in submitted(order, num_submissions))
        for order in itertools.permutations(enumerate(candidates), k)
    ]
    return sum(solved) / len(solved)


CANDIDATES = st.builds(
    candidate,
    st.booleans(),
    st.sampled_from(["x", "y", "z", None]),
    st.sampled_from([True, True, None, False]),
)


@examples(60)
@given(st.lists(CANDIDATES, min_size=1, max_size=6), st.integers(1, 6))
def test_it_is_the_mean_over_all_orders(candidates, num_submissions):
    got = submissions_at_k(candidates, num_submissions, len(candidates))
    assert got == pytest.approx(counted(candidates, num_submissions, len(candidates)), rel=1e-12, abs=1e-13)


def test_fewer_than_all_are_drawn_without_bias():
    candidates = [candidate(i == 0, "x" if i < 2 else "y") for i in range(5)]
    exact = counted(candidates, 1, 3)
    got = submissions_at_k(candidates, 1, 3, num_draws=4000)
    assert abs(got - exact) < 4 * (exact * (1 - exact) / 4000) ** 0.5
    assert got == submissions_at_k(candidates, 1, 3, num_draws=4000)


def test_the_largest_cluster_goes_first_and_the_filter_before_it():
    wrong = [candidate(False, "crowd", passed_public=False) for _ in range(9)]
    right = [candidate(True, "few", passed_public=True) for _ in range(2)]
    assert submissions_at_k(wrong + right, 1, 11) == 1.0
    assert submissions_at_k(wrong, 10, 9) == 0.0
    unfiltered = [candidate(False, "crowd") for _ in range(9)]
    assert submissions_at_k(unfiltered + right, 1, 11) == 0.0
    assert submissions_at_k(unfiltered + right, 2, 11) == 1.0


def test_what_is_out_of_range_is_refused():
    programs = [candidate(True, "x")]
    with pytest.raises(ConfigError, match="k: got 2"):
        submissions_at_k(programs, 1, 2)
    with pytest.raises(ConfigError, match="num_submissions: got 0"):
        submissions_at_k(programs, 0, 1)
