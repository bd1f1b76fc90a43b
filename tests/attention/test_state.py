"""The merge of partial attention: its laws and its oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from treeshare.attention import AttentionState, merge_states
from treeshare.errors import ShapeError


def random_state(rng, num_rows=4, num_heads=3, head_dim=5, num_keys=7, scale=1.0):
    """Attention of random scores over random values, by definition; and those scores and values."""
    scores = torch.randn(num_rows, num_heads, num_keys, generator=rng, dtype=torch.float64) * scale
    values = torch.randn(num_rows, num_heads, num_keys, head_dim, generator=rng, dtype=torch.float64)
    return attend(scores, values), scores, values


def attend(scores, values):
    out = torch.einsum("rhn,rhnd->rhd", scores.softmax(-1), values)
    return AttentionState(out, scores.logsumexp(-1))


def assert_same(a, b):
    """Equal up to a few roundings of float64."""
    bound = 64 * torch.finfo(torch.float64).eps
    assert ((a.out - b.out).abs() <= bound * (1 + b.out.abs())).all()
    finite = b.lse != -torch.inf
    assert torch.equal(finite, a.lse != -torch.inf)
    assert ((a.lse - b.lse)[finite].abs() <= bound * (1 + b.lse[finite].abs())).all()


@examples(50)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.0, 1.0, 30.0, 1e3]))
def test_merge_is_attention_over_the_union(seed, scale):
    rng = torch.Generator().manual_seed(seed)
    a, a_scores, a_values = random_state(rng, scale=scale)
    b, b_scores, b_values = random_state(rng, num_keys=2, scale=scale)
    union = attend(torch.cat([a_scores, b_scores], 2), torch.cat([a_values, b_values], 2))
    assert_same(merge_states(a, b), union)


@examples(50)
@given(seed=st.integers(0, 2**32))
def test_merge_laws(seed):
    rng = torch.Generator().manual_seed(seed)
    a, b, c = (random_state(rng, num_keys=n)[0] for n in (1, 3, 6))
    nothing = AttentionState.empty(a.out.shape, torch.float64)
    assert_same(merge_states(a, b), merge_states(b, a))
    assert_same(merge_states(merge_states(a, b), c), merge_states(a, merge_states(b, c)))
    assert_same(merge_states(a, nothing), a)
    assert_same(merge_states(nothing, a), a)
    assert_same(merge_states(nothing, nothing), nothing)
    assert not merge_states(nothing, nothing).out.isnan().any()


def test_refuses_what_does_not_fit():
    a = AttentionState.empty((2, 3, 4))
    with pytest.raises(ShapeError, match=r"\(2, 3, 4\).*\(2, 3, 5\)"):
        merge_states(a, AttentionState.empty((2, 3, 5)))
    with pytest.raises(ShapeError, match=r"float32.*float64"):
        merge_states(a, AttentionState.empty((2, 3, 4), torch.float64))
