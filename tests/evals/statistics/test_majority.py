"""majority@k against counting all draws and ties."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from treeshare.errors import ConfigError
from treeshare.evals.statistics.majority import majority_at_k


def counted(answers, right, k):
    total = 0.0
    for draw in itertools.combinations(answers, k):
        votes = Counter(answer for answer in draw if answer is not None)
        if votes:
            tied = [answer for answer, count in votes.items() if count == max(votes.values())]
            total += sum(answer in right for answer in tied) / len(tied)
    return total / math.comb(len(answers), k)


@examples(150)
@given(
    answers=st.lists(st.sampled_from(["1", "2", "3", "4", None]), min_size=1, max_size=9),
    right=st.sets(st.sampled_from(["1", "2", "9"])),
    data=st.data(),
)
def test_it_is_the_mean_over_all_draws(answers, right, data):
    k = data.draw(st.integers(1, len(answers)))
    expected = counted(answers, right, k)
    assert majority_at_k(answers, right, k) == pytest.approx(expected, rel=1e-12, abs=1e-13)


def test_ties_are_shared_and_silence_does_not_vote():
    assert majority_at_k(["a", "a", "b", "b", "c"], {"a"}, 5) == pytest.approx(1 / 2)
    assert majority_at_k(["a", None, None, None], {"a"}, 4) == pytest.approx(1.0)
    assert majority_at_k([None, None], {"a"}, 2) == 0.0
    assert majority_at_k(["a", "b"], {"a"}, 1) == pytest.approx(0.5)
    assert majority_at_k(["a", "b"], {"a", "b"}, 2) == pytest.approx(1.0)


def test_all_of_many_completions_is_the_plain_vote():
    answers = ["7"] * 400 + ["8"] * 399 + [None] * 700
    assert majority_at_k(answers, {"7"}, len(answers)) == pytest.approx(1.0)
    assert majority_at_k(answers, {"8"}, len(answers)) == pytest.approx(0.0)


def test_it_does_not_overflow_for_many_completions():
    answers = [str(i % 5) for i in range(3000)]
    assert majority_at_k(answers, {"0"}, 40) == pytest.approx(0.2, rel=1e-9)


@pytest.mark.parametrize("k", [0, 3])
def test_what_is_out_of_range_is_refused(k):
    with pytest.raises(ConfigError, match="k: got"):
        majority_at_k(["a", "b"], {"a"}, k)
