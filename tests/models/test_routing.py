"""Routers' choices while a model is checked: the noted ones, where they are as good."""

from __future__ import annotations

import pytest
import torch

from tests.models.mixtures import make_mixture
from treeshare.models import self_check
from treeshare.models.binding import bind_model
from treeshare.models.routing import Routing, joined


def choose(scores, noted=None):
    with Routing(torch.bfloat16, noted) as routing:
        result = torch.topk(scores, 2, dim=-1)
    return result, routing.chosen


def test_choices_are_noted():
    (_, indices), chosen = choose(torch.tensor([[0.1, 0.5, 0.3], [0.9, 0.2, 0.4]]))
    assert indices.tolist() == chosen[0].tolist() == [[1, 2], [0, 2]]


@pytest.mark.parametrize(("score", "is_taken"), [(0.29, True), (0.2, False)])
def test_a_choice_is_taken_where_it_is_as_good(score, is_taken):
    noted = [torch.tensor([[1, 0]])]
    (values, indices), chosen = choose(torch.tensor([[score, 0.5, 0.3]]), noted)
    expected = [[1, 0]] if is_taken else [[1, 2]]
    assert indices.tolist() == chosen[0].tolist() == expected
    assert values.tolist()[0] == pytest.approx([0.5, score if is_taken else 0.3])


def test_scores_that_are_masked_away_are_never_taken():
    noted = [torch.tensor([[1, 0]])]
    (_, indices), _ = choose(torch.tensor([[-torch.inf, 0.5, 0.3]]), noted)
    assert indices.tolist() == [[1, 2]]


def test_another_number_of_choices_is_a_runs_own():
    (_, indices), _ = choose(torch.tensor([[0.1, 0.5, 0.3]]), [torch.tensor([[1, 0], [0, 1]])])
    assert indices.tolist() == [[1, 2]]


def test_the_largest_alone():
    scores = torch.tensor([[0.49, 0.5, 0.3]])
    with Routing(torch.bfloat16, [torch.tensor([[0]])]) as routing:
        values, indices = scores.max(dim=-1, keepdim=True)
    assert (values.item(), indices.item()) == (pytest.approx(0.49), 0)
    assert routing.chosen[0].tolist() == [[0]]
    with Routing(torch.bfloat16) as routing:
        assert scores.max() == 0.5
        assert scores.max(dim=-1).indices.tolist() == [1]
    assert [choice.tolist() for choice in routing.chosen] == [[[1]]]


def test_the_largest_of_attention_is_no_choice():
    with Routing(torch.bfloat16) as routing:
        torch.zeros(1, 2, 3, 4).max(dim=-1)
    assert routing.chosen == []


def test_joined():
    first, second = [torch.tensor([[1], [2], [3]])], [torch.tensor([[1], [2], [4], [5]])]
    assert joined(first, second, 2)[0].ravel().tolist() == [1, 2, 3, 4, 5]


def test_a_mixture_whose_choices_are_near_ties(monkeypatch):
    """In bfloat16 two attentions round otherwise; without the noted choices all rows would not agree."""
    monkeypatch.setattr(self_check, "_MOST_ROWS", {torch.bfloat16: 1.0})
    assert bind_model(make_mixture("minimax_m2", torch.bfloat16)).unfused_reason is None
    monkeypatch.setattr(self_check, "Routing", lambda dtype, noted: Routing(dtype))
    with pytest.raises(Exception, match="differ"):
        bind_model(make_mixture("minimax_m2", torch.bfloat16))
