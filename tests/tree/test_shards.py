"""Parts of a forest: nothing lost, balanced as the forecast sees it, only what is too large is cut."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeshare.tree import PromptTree
from treeshare.tree.forecast import Limits, forecast
from treeshare.tree.shards import MAX_SHARDS_PER_WORKER, cut_forest


class Cost:
    """A second per thousand prompt tokens; a decoding step costs something by itself, and more by row."""

    def prefill_s(self, num_tokens, num_pairs):
        return num_tokens / 1000 + num_pairs / 1e7

    def decode_s(self, num_rows, shared_pairs, private_pairs):
        return 0.01 + num_rows / 2000 + (shared_pairs + private_pairs) / 1e7


LIMITS = Limits(max_num_seqs=64, kv_budget_bytes=1 << 40, kept=[(4, None)])


def cut(prompts, counts, tokens, num_workers, max_num_seqs=64):
    tree = PromptTree.from_prompts(prompts)
    wanted = [list(range(count)) for count in counts]
    shards = cut_forest(tree, wanted, tokens, Cost(), num_workers=num_workers, max_num_seqs=max_num_seqs)
    return tree, shards


def shared(num_problems, seed=0, length=40):
    draws = random.Random(seed)
    preamble = [draws.randrange(100) for _ in range(300)]
    return [preamble + [draws.randrange(100) for _ in range(length)] for _ in range(num_problems)]


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(0, 30)), max_size=12),
    st.integers(1, 5),
    st.integers(1, 40),
)
def test_every_completion_is_in_one_part(problems, num_workers, max_num_seqs):
    prompts, counts = [prompt for prompt, _ in problems], [count for _, count in problems]
    _, shards = cut(prompts, counts, [5] * len(problems), num_workers, max_num_seqs)
    found = sorted((p, i) for shard in shards for p, indices in shard.wanted.items() for i in indices)
    assert found == [(p, i) for p, count in enumerate(counts) for i in range(count)]
    assert all(indices for shard in shards for indices in shard.wanted.values())
    assert len(shards) <= num_workers * MAX_SHARDS_PER_WORKER
    seconds = [shard.predicted_s for shard in shards]
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize("num_workers", [2, 3, 5])
def test_parts_take_about_as_long_as_one_another(num_workers):
    """By the forecast, which simulates each part's schedule."""
    draws = random.Random(1)
    counts = [draws.randrange(2, 20) for _ in range(60)]
    tokens = [draws.randrange(16, 200) for _ in counts]
    tree, shards = cut(shared(60), counts, tokens, num_workers, max_num_seqs=300)
    assert len(shards) == num_workers
    seconds = []
    for shard in shards:
        parts = [len(shard.wanted.get(prompt, ())) for prompt in range(60)]
        seconds.append(forecast(tree, parts, tokens, LIMITS, Cost()).wall_s)
    assert max(seconds) < 1.3 * min(seconds)


def test_a_problem_stays_whole():
    _, shards = cut(shared(9), [40] * 9, [64] * 9, num_workers=4)
    places = [prompt for shard in shards for prompt in shard.wanted]
    assert sorted(places) == list(range(9))


def test_two_equal_problems_are_not_cut():
    _, shards = cut(shared(2), [200, 200], [64, 64], num_workers=2, max_num_seqs=256)
    assert sorted(list(shard.wanted) for shard in shards) == [[0], [1]]


def test_a_subtree_stays_together():
    """Two preambles, four problems each: no part computes both."""
    prompts = [shared(4, seed=seed)[i] for seed in (3, 4) for i in range(4)]
    _, shards = cut(prompts, [8] * 8, [32] * 8, num_workers=2)
    assert sorted(sorted(shard.wanted) for shard in shards) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_problem_larger_than_a_share_is_cut():
    counts = [4, 400, 4]
    _, shards = cut(shared(3), counts, [64] * 3, num_workers=4, max_num_seqs=256)
    assert len(shards) == 4
    sizes = [sum(map(len, shard.wanted.values())) for shard in shards]
    assert max(sizes) < 1.3 * min(sizes)
    for small in (0, 2):
        assert sum(small in shard.wanted for shard in shards) == 1
    for shard in shards:
        indices = shard.wanted[1]
        assert indices == list(range(indices[0], indices[-1] + 1))


def test_more_parts_than_workers_only_where_each_fills_the_rows():
    assert len(cut(shared(20), [8] * 20, [64] * 20, num_workers=2, max_num_seqs=256)[1]) == 2
    assert len(cut(shared(90), [40] * 90, [64] * 90, num_workers=2, max_num_seqs=256)[1]) == 8
