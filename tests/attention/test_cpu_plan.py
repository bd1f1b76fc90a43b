"""The ``cpu`` backend's plan: its batched matmuls are the layout's slices and pages, each exactly once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.attention.steps import PAGE_SIZE, SHAPES, Step, shapes
from tests.examples import examples
from treeshare.attention import AttentionSpec
from treeshare.attention.cpu_plan import MAX_PADDING, MIN_QUERIES, CpuPlan
from treeshare.config import SEGMENT_ALIGNMENT


def attended(group):
    """(order of the segment, row) of each real query of a group; padding repeats a row of its own node."""
    num_nodes = group.last - group.first
    segments = group.block.occupants[group.first : group.last]
    if isinstance(group.rows, slice):
        rows = torch.arange(group.rows.start, group.rows.stop).view(num_nodes, -1)
        assert group.valid is None
    else:
        rows = group.rows
    assert rows.shape == (num_nodes, group.num_padded)
    real = torch.ones(rows.numel(), dtype=torch.bool)
    if group.valid is not None:
        real = torch.zeros_like(real).index_fill_(0, group.valid, True)
    pairs = []
    for segment, node_rows, node_real in zip(segments, rows, real.view_as(rows), strict=True):
        own = set(node_rows[node_real].tolist())
        assert own.issuperset(node_rows.tolist()), "padding is another node's row"
        pairs += [(segment.order, row) for row in node_rows[node_real].tolist()]
    return pairs


def visible(group):
    """``[num_nodes, num_padded, padded_tokens]`` keys that are not masked for each query."""
    num_nodes = group.last - group.first
    tokens = torch.ones(num_nodes, group.num_padded, group.block.padded_tokens, dtype=torch.bool)
    if group.padding is not None:
        tokens[:, :, -SEGMENT_ALIGNMENT:] = ~group.padding.unsqueeze(1)
    assert group.first_key % SEGMENT_ALIGNMENT == 0
    tokens[:, :, : group.first_key] = False
    if group.unseen is not None:
        tokens[:, :, group.first_key : group.first_key + group.unseen.shape[2]] &= ~group.unseen
    return tokens


def check_shared(plan):
    """Root first, each row of each slice once, each key of a segment and none of its padding."""
    layout = plan.layout
    expected = Counter(
        (s.segment.order, row) for s in layout.slices for row in range(s.first_row, s.last_row)
    )
    segments = {s.segment.order: s.segment for s in layout.slices}
    found, done = Counter(), set()
    for group in plan.shared:
        assert group.num_padded >= MIN_QUERIES
        pairs = attended(group)
        for order, row in pairs:
            above = {(other.order, row) for other in segments[order].path()[:-1]}
            assert above <= done, "a child comes before its parent"
        done.update(pairs)
        found.update(pairs)
        counts = Counter(order for order, _ in pairs)
        padded = group.num_padded * len(counts)
        assert padded <= max(MAX_PADDING * len(pairs), MIN_QUERIES * len(counts)), "more padding than work"
        lengths = [segment.num_tokens for segment in group.block.occupants[group.first : group.last]]
        keys = torch.arange(group.block.padded_tokens)
        of_nodes = (keys < torch.tensor(lengths).unsqueeze(1)).unsqueeze(1)
        assert torch.equal(visible(group), of_nodes.expand(-1, group.num_padded, -1))
    assert found == expected


def check_private(plan):
    """Each row attends to each of its pages once, oldest first, and to the tokens written there."""
    layout, private = plan.layout, plan.private
    if not layout.decodes:
        assert private is None
        return
    assert private.num_pages == layout.store.pools[0].num_live
    num_places = private.num_pages + len(private.repeated)
    pages = [*range(private.num_pages), *private.repeated.tolist()]
    assert private.unseen.shape == (num_places, PAGE_SIZE)
    expected = []
    for row, source in zip(layout.decode_rows.tolist(), layout.decodes, strict=True):
        for age in range(source.num_private // PAGE_SIZE + 1):
            num_tokens = min(source.num_private + 1 - age * PAGE_SIZE, PAGE_SIZE)
            expected.append((age, row, source.pages.pages[0][age].index, num_tokens))
    found, places = [], []
    for age, (at, rows) in enumerate(private.ordinals):
        assert private.rows[at].tolist() == rows.tolist()
        for place, row in zip(at.tolist(), rows.tolist(), strict=True):
            num_tokens = int((~private.unseen[place]).sum())
            assert not private.unseen[place, :num_tokens].any(), "tokens with a hole between them"
            found.append((age, row, pages[place], num_tokens))
            places.append(place)
    assert sorted(found) == sorted(expected)
    assert len(places) == len(set(places)), "a place is for one row"
    unused = [place for place in range(num_places) if place not in places]
    assert private.unseen[unused].all(), "a page that nobody needs in this step is seen"


def check_windows(step, spec):
    """What each row sees of segments and pages, key by key: its path from the first position that it sees."""
    layout = step.layout
    first_seen = spec.first_seen(layout.positions)
    plan = CpuPlan.of(layout, first_seen)
    seen = [[] for _ in range(layout.num_rows)]
    for group in plan.shared:
        segments = group.block.occupants[group.first : group.last]
        shown = visible(group).flatten(0, 1)
        rows = (
            torch.arange(group.rows.start, group.rows.stop) if isinstance(group.rows, slice) else group.rows
        )
        places = range(rows.numel()) if group.valid is None else group.valid.tolist()
        for place in places:
            segment = segments[place // group.num_padded]
            tokens = shown[place].nonzero().flatten().tolist()
            seen[rows.flatten()[place]] += [("segment", segment.order, token) for token in tokens]
        assert shown.any(0).any(), "a group that no row sees"
        assert shown[:, group.first_key : group.first_key + SEGMENT_ALIGNMENT].any(), "read from too early"
    for chunk in layout.causal:
        for row in range(chunk.first_row, chunk.last_row):
            first = max(int(first_seen[row]) - chunk.segment.start, 0)
            last = chunk.start + row - chunk.first_row
            seen[row] += [("segment", chunk.segment.order, token) for token in range(first, last + 1)]
    pages = []
    if plan.private is not None:
        pages = [*range(plan.private.num_pages), *plan.private.repeated.tolist()]
        for at, rows in plan.private.ordinals:
            for place, row in zip(at.tolist(), rows.tolist(), strict=True):
                tokens = (~plan.private.unseen[place]).nonzero().flatten().tolist()
                assert tokens, "a page of which the row sees nothing"
                seen[row] += [("page", pages[place], token) for token in tokens]
    expected = [path[first:] for path, first in zip(step.expected(), first_seen.tolist(), strict=True)]
    assert seen == expected
    read = {index for path in expected for kind, index, _ in path if kind == "page"}
    assert set(pages) in (read, set(range(layout.store.pools[0].num_live))), "a page that nobody sees is read"


SPECS = [
    AttentionSpec(scale=1.0, window=1),
    AttentionSpec(scale=1.0, window=7),
    AttentionSpec(scale=1.0, window=70),
    AttentionSpec(scale=1.0, chunk=64),
    AttentionSpec(scale=1.0, window=20, chunk=48),
]


def check(plan):
    check_shared(plan)
    check_private(plan)


@pytest.mark.parametrize("sharing", ["tree", "one-level", "none"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_plan_is_its_layout(name, sharing):
    check(CpuPlan.of(Step(SHAPES[name], sharing).layout))


@examples(40)
@given(shapes())
def test_a_plan_is_its_layout_in_any_tree(shape):
    for sharing in ("tree", "one-level", "none"):
        step = Step(shape, sharing)
        check(CpuPlan.of(step.layout))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_windows(name, spec):
    check_windows(Step(SHAPES[name]), spec)


@examples(40)
@given(shapes(), st.sampled_from(SPECS), st.sampled_from(["tree", "one-level", "none"]))
def test_windows_in_any_tree(shape, spec, sharing):
    check_windows(Step(shape, sharing), spec)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_window_off_by_one_is_found(change, monkeypatch):
    seen = AttentionSpec.first_seen
    step = Step(SHAPES["depth 6"])
    plan = CpuPlan.of(step.layout, seen(SPECS[2], step.layout.positions) + change)
    monkeypatch.setattr(CpuPlan, "of", lambda *a: plan)
    with pytest.raises(AssertionError):
        check_windows(step, SPECS[2])


def test_pages_of_sequences_without_a_row():
    """They are in the pool, and nobody attends to them."""
    step = Step(SHAPES["depth 6"])
    for _ in range(3):
        step.store.pools[0].new_page()
    check(CpuPlan.of(step.layout))


def test_equal_neighbours_are_one_matmul():
    """Of 16 rows each, that lie side by side: no gather, no padding. Uneven ones are not worth it."""
    groups = CpuPlan.of(Step(SHAPES["equal nodes"]).layout).shared
    assert [(group.last - group.first, group.valid) for group in groups][1:] == [(3, None)]
    assert isinstance(groups[1].rows, slice)
    uneven = CpuPlan.of(Step(SHAPES["uneven nodes"]).layout).shared
    assert len(uneven) == 4


SHARED_FAULTS = {
    "rows": lambda group: {
        "rows": group.rows.roll(1, 1) if not isinstance(group.rows, slice) else slice(0, 16)
    },
    "first": lambda group: {"first": group.first + 1},
    "last": lambda group: {"last": group.last - 1},
    "num_padded": lambda group: {"num_padded": group.num_padded - 1},
    "valid": lambda group: {"valid": None if group.valid is None else group.valid[:-1]},
    "valid, padding": lambda group: {"valid": None},
    "padding": lambda group: {"padding": None},
    "padding, a key": lambda group: {"padding": None if group.padding is None else group.padding.roll(-1, 1)},
}
PRIVATE_FAULTS = {
    "num_pages": lambda pages: {"num_pages": pages.num_pages - 1},
    "repeated": lambda pages: {"repeated": pages.repeated.roll(1)},
    "rows": lambda pages: {"rows": pages.rows.roll(1)},
    "unseen": lambda pages: {"unseen": torch.zeros_like(pages.unseen)},
    "unseen, a key": lambda pages: {"unseen": pages.unseen.roll(-1, 1) | pages.unseen},
    "ordinals": lambda pages: {"ordinals": pages.ordinals[1:]},
    "ordinals, order": lambda pages: {"ordinals": pages.ordinals[::-1]},
    "ordinals, rows": lambda pages: {"ordinals": tuple((at, rows.roll(1)) for at, rows in pages.ordinals)},
}
FAULTY = Step(SHAPES["mixed step"]).layout


@pytest.mark.parametrize("field", SHARED_FAULTS)
def test_a_fault_in_a_group_is_found(field):
    plan = CpuPlan.of(FAULTY)
    faulty = tuple(replace(group, **SHARED_FAULTS[field](group)) for group in plan.shared)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        check_shared(replace(plan, shared=faulty))


def test_a_dropped_level_is_found():
    plan = CpuPlan.of(FAULTY)
    for place in range(len(plan.shared)):
        with pytest.raises(AssertionError):
            check_shared(replace(plan, shared=plan.shared[:place] + plan.shared[place + 1 :]))
    with pytest.raises(AssertionError, match="a child comes before its parent"):
        check_shared(replace(plan, shared=plan.shared[::-1]))


@pytest.mark.parametrize("field", PRIVATE_FAULTS)
def test_a_fault_in_the_pages_is_found(field):
    plan = CpuPlan.of(FAULTY)
    faulty = replace(plan.private, **PRIVATE_FAULTS[field](plan.private))
    with pytest.raises((AssertionError, IndexError)):
        check_private(replace(plan, private=faulty))
