"""A step's layout: every row sees exactly the keys of its path, and rows below a node are one slice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given

from tests.attention.steps import GEOMETRY, PAGE_SIZE, SHAPES, Shape, Step, shapes
from tests.examples import examples
from treeshare.attention import PrefillChunk, build_layout, depth_first
from treeshare.kv import PageTable


def seen_by(layout):
    """Per packed row the places of the keys that the layout lets it see, in order."""
    seen = [[] for _ in range(layout.num_rows)]
    for segment, first_row, last_row in layout.slices:
        for row in range(first_row, last_row):
            seen[row] += [("segment", segment.order, token) for token in range(segment.num_tokens)]
    for chunk in layout.causal:
        assert chunk.last_row - chunk.first_row == chunk.end - chunk.start
        for row in range(chunk.first_row, chunk.last_row):
            num_own = chunk.start + row - chunk.first_row + 1
            seen[row] += [("segment", chunk.segment.order, token) for token in range(num_own)]
    for row, source in zip(layout.decode_rows.tolist(), layout.decodes, strict=True):
        for token in range(source.num_private + 1):
            seen[row].append(("page", source.pages.pages[0][token // PAGE_SIZE].index, token % PAGE_SIZE))
    return seen


def stores_at(layout):
    """Per packed row the place that its own KV goes to, as ``write`` fills it on the last layer."""
    rows = (
        torch.arange(layout.num_rows, dtype=torch.float32)
        .view(-1, 1, 1)
        .expand(-1, 1, GEOMETRY.layers[0].key_width)
    )
    layout.write(1, rows, -rows)
    found = [None] * layout.num_rows
    segments = {segment for s in layout.slices for segment in s.segment.path()}
    segments |= {chunk.segment for chunk in layout.causal}
    for segment in segments:
        for token, (key, value) in enumerate(zip(segment.keys(1), segment.values(1), strict=True)):
            _note(found, key, value, ("segment", segment.order, token))
    keys, values = layout.store.pools[0].keys[1], layout.store.pools[0].values[1]
    for page in range(layout.store.pools[0].num_live):
        for offset in range(PAGE_SIZE):
            value = values[page, 0, offset, : GEOMETRY.layers[0].key_width]
            _note(found, keys[page, 0, offset], value, ("page", page, offset))
    return found


def _note(found, key, value, place):
    if key.isnan().all():
        return
    assert torch.equal(key, -value), "a key without its value"
    row = int(key.view(-1)[0])
    assert found[row] is None, "a row is stored twice"
    found[row] = place


def check(layout, expected):
    """What a layout promises."""
    assert layout.num_rows == len(expected)
    assert seen_by(layout) == expected
    assert layout.positions.tolist() == [len(keys) - 1 for keys in expected]
    assert stores_at(layout) == [keys[-1] for keys in expected]


@pytest.mark.parametrize("sharing", ["tree", "one-level", "none"])
@pytest.mark.parametrize("name", SHAPES)
def test_rows_see_their_paths(name, sharing):
    step = Step(SHAPES[name], sharing)
    check(step.layout, step.expected())


@examples(40)
@given(shapes())
def test_rows_see_their_paths_in_any_tree(shape):
    for sharing in ("tree", "one-level", "none"):
        step = Step(shape, sharing)
        check(step.layout, step.expected())


@pytest.mark.parametrize("sharing", ["one-level", "none"])
def test_chunks_with_rows_between_them_where_rows_do_not_share(sharing):
    shape = Shape(
        ((0, 5), (1, 20), (2, 20), (2, 20), (2, 20)), chunks=((2, 0), (4, 0)), decodes=((3, 0, 1), (1, 0, 1))
    )
    step = Step(shape, sharing)
    check(step.layout, step.expected())


@examples(40)
@given(shapes())
def test_rows_below_a_node_are_one_slice(shape):
    """And parents come first; without sharing, each decoding row has a slice of its own."""
    segments = [s.segment for s in Step(shape).layout.slices]
    assert len(segments) == len(set(segments))
    for place, segment in enumerate(segments):
        assert segment.parent is None or segment.parent in segments[:place]
    alone = Step(shape, "none").layout
    decode_rows = set(alone.decode_rows.tolist())
    for _, first_row, last_row in alone.slices:
        assert last_row - first_row == 1 or not decode_rows & set(range(first_row, last_row))
    one_level = Step(shape, "one-level").layout
    for segment, first_row, last_row in one_level.slices:
        is_shared = segment.order == 0 or not decode_rows & set(range(first_row, last_row))
        assert is_shared or last_row - first_row == 1
    assert len({s.segment for s in one_level.slices if s.segment.order == 0}) <= 1


@examples(40)
@given(shapes())
def test_depth_first_is_stable(shape):
    """Rows of a node, and chunks of a segment, keep their order."""
    step = Step(shape)
    rows = step.rows[::2] + step.rows[1::2]
    chunks, order = depth_first(step.chunks[::-1], rows)
    assert chunks == step.chunks
    assert sorted(order) == list(range(len(rows)))
    keys = [(rows[i].segment.order, i) for i in order]
    assert keys == sorted(keys)


def test_two_chunks_of_a_segment():
    """They come in the order of their tokens, and the second sees the first."""
    step = Step(SHAPES["one prefill"])
    (segment,) = step.segments
    chunks, _ = depth_first([PrefillChunk(segment, 32, 64), PrefillChunk(segment, 0, 32)], [])
    layout = build_layout(step.store, chunks, [])
    check(layout, [[("segment", 0, token) for token in range(row + 1)] for row in range(64)])


def test_nothing_to_do():
    layout = Step(replace(SHAPES["depth 6"], decodes=())).layout
    assert (layout.num_rows, layout.slices, layout.causal, layout.decodes) == (0, (), (), ())
    check(layout, [])


def a_slice(layout, **change):
    """The second slice, changed."""
    return {"slices": (layout.slices[0], layout.slices[1]._replace(**change), *layout.slices[2:])}


def a_chunk(layout, **change):
    """The first chunk, changed."""
    return {"causal": (replace(layout.causal[0], **change), *layout.causal[1:])}


FAULTS = {
    "slices, first_row": lambda x: a_slice(x, first_row=x.slices[1].first_row + 1),
    "slices, last_row": lambda x: a_slice(x, last_row=x.slices[1].last_row + 1),
    "slices, segment": lambda x: a_slice(x, segment=x.slices[0].segment),
    "slices, a level": lambda x: {"slices": x.slices[1:]},
    "slices, order": lambda x: {"slices": x.slices[::-1]},
    "causal, start": lambda x: a_chunk(x, start=x.causal[0].start - 1),
    "causal, first_row": lambda x: a_chunk(x, first_row=x.causal[0].first_row + 1),
    "causal, segment": lambda x: a_chunk(x, segment=x.causal[2].segment),
    "causal, a chunk": lambda x: {"causal": x.causal[:-1]},
    "decodes, num_private": lambda x: {
        "decodes": tuple(replace(row, num_private=max(row.num_private - 1, 0)) for row in x.decodes)
    },
    "decodes, pages": lambda x: {
        "decodes": tuple(replace(row, pages=PageTable((row.pages.pages[0][::-1],))) for row in x.decodes)
    },
    "decode_rows": lambda x: {"decode_rows": x.decode_rows.roll(1)},
    "write_pages": lambda x: {"write_pages": tuple(pages.roll(1) for pages in x.write_pages)},
    "write_offsets": lambda x: {"write_offsets": (x.write_offsets - 1).clamp(min=0)},
    "positions": lambda x: {"positions": x.positions + (x.positions > 100)},
    "num_rows": lambda x: {"num_rows": x.num_rows + 1},
}


def test_without_a_fault_the_check_passes():
    step = Step(SHAPES["mixed step"])
    check(replace(step.layout), step.expected())


@pytest.mark.parametrize("field", FAULTS)
def test_a_fault_is_found(field):
    step = Step(SHAPES["mixed step"])
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        check(replace(step.layout, **FAULTS[field](step.layout)), step.expected())
