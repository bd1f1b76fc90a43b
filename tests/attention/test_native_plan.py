"""What the compiled kernel is told that each row sees: what it should, and no page or slice beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.attention.steps import PAGE_SIZE, SHAPES, Step, shapes
from tests.examples import examples
from treeshare.attention import AttentionSpec
from treeshare.attention.native_plan import NativePlan


def rows_see(plan, spec):
    """Per packed row the places of the keys that it sees, in order, as the arrays say it."""
    view, layout = plan._view(0, spec), plan.layout
    first_seen = [0] * layout.num_rows if view.first_seen is None else view.first_seen.tolist()
    seen = [[] for _ in range(layout.num_rows)]
    for part in view.slices:
        pieces = view.places._parts[part["first_piece"] :][: part["num_pieces"]]
        keys = [("segment", piece.segment.order, token) for piece in pieces for token in range(*piece[1:])]
        assert len(keys) == part["num_keys"]
        used = False
        for i, row in enumerate(range(part["first_row"], part["last_row"])):
            end = len(keys)
            if part["causal"]:
                own = pieces[-1].last_token - pieces[-1].first_token
                end = len(keys) - own + part["first_own_token"] + i + 1
            visible = keys[max(first_seen[row] - part["first_position"], 0) : end]
            seen[row] += visible
            used |= bool(visible)
        assert used, "a slice of which no row sees a key"
    for row in range(layout.num_rows):
        pages = view.pages[view.page_indptr[row] : view.page_indptr[row + 1]].tolist()
        places = [("page", page, offset) for page in pages for offset in range(PAGE_SIZE)]
        hidden = view.hidden_tokens[row]
        assert 0 <= hidden < PAGE_SIZE, "a page of which the row sees nothing"
        seen[row] += places[hidden : view.tokens[row]]
    return seen


def check(step, spec):
    first_seen = spec.first_seen(step.layout.positions).tolist()
    expected = [keys[first:] for keys, first in zip(step.expected(), first_seen, strict=True)]
    assert rows_see(NativePlan(step.layout), spec) == expected


SPECS = [
    AttentionSpec(scale=1.0, window=window, chunk=chunk)
    for window, chunk in (
        (None, None),
        (1, None),
        (17, None),
        (64, None),
        (1000, None),
        (None, 16),
        (40, 100),
    )
]


@pytest.mark.parametrize("sharing", ["tree", "one-level", "none"])
@pytest.mark.parametrize("name", SHAPES)
def test_rows_see_what_they_should(name, sharing):
    for spec in SPECS:
        check(Step(SHAPES[name], sharing), spec)


@examples(20)
@given(shapes(), st.sampled_from(SPECS))
def test_rows_see_what_they_should_in_any_tree(shape, spec):
    for sharing in ("tree", "none"):
        check(Step(shape, sharing), spec)


def test_pages_that_were_given_back_are_not_looked_at():
    """And one that a row sees is missed at once, not read from another's."""
    step = Step(SHAPES["depth 6"])
    longest = max(step.layout.decodes, key=lambda row: row.num_private)
    longest.pages.pages[0][0] = None
    assert len(rows_see(NativePlan(step.layout), AttentionSpec(scale=1.0, window=2))) == step.layout.num_rows
    with pytest.raises(AssertionError, match="given back"):
        rows_see(NativePlan(step.layout), AttentionSpec(scale=1.0))


def test_views_are_made_once():
    """A window that hides nothing is no window."""
    plan = NativePlan(Step(SHAPES["depth 6"]).layout)
    whole, wide, narrow, again = (
        plan._view(0, AttentionSpec(scale=scale, window=window))
        for scale, window in ((1.0, None), (1.0, 10_000), (1.0, 7), (2.0, 7))
    )
    assert wide is whole
    assert again is narrow
    assert narrow is not whole


def test_a_step_without_prompts_above_it():
    """No slices at all: rows see their pages alone."""
    step = Step(SHAPES["one sequence"])
    view = NativePlan(step.layout)._view(0, AttentionSpec(scale=1.0, window=1))
    assert len(view.slices) == 0
    assert view.pages.dtype == np.int64
