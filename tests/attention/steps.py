"""Steps over trees of any shape, and by brute force what each of their rows sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from treeshare.attention import DecodeRow, PrefillChunk, build_layout, depth_first
from treeshare.kv import KVGeometry, KVStore

GEOMETRY = KVGeometry.uniform(num_layers=2, num_kv_heads=1, head_dim=16, dtype=torch.float32)
PAGE_SIZE = 16


@dataclass(frozen=True)
class Shape:
    """What a step is made of.

    Attributes:
        nodes: (depth, length) of each node in preorder; one too deep becomes a child of the node before.
        chunks: (node, first token) of the chunks; they end with their nodes.
        decodes: (node, private tokens, rows) of the sequences; those of an entry share their full pages.
    """

    nodes: tuple[tuple[int, int], ...]
    chunks: tuple[tuple[int, int], ...] = ()
    decodes: tuple[tuple[int, int, int], ...] = ()


class Step:
    """A shape's segments, pages and rows; packed depth-first, as ``layout`` should have them."""

    def __init__(self, shape, sharing="tree"):
        self.store = KVStore(GEOMETRY, budget_bytes=1 << 40, page_size=PAGE_SIZE, max_pages=500, poison=True)
        self.segments = self._make_segments(shape.nodes)
        chunks = [
            PrefillChunk(self.segments[node], first, self.segments[node].num_tokens)
            for node, first in shape.chunks
        ]
        rows = [row for decode in shape.decodes for row in self._make_rows(*decode)]
        self.chunks, order = depth_first(chunks, rows)
        self.rows = [rows[i] for i in order]
        self.layout = build_layout(self.store, self.chunks, self.rows, sharing=sharing)

    def _make_segments(self, nodes):
        for length in {length for _, length in nodes}:
            self.store.segments.reserve(length, sum(other == length for _, other in nodes))
        segments, path = [], []
        for depth, length in nodes:
            del path[depth:]
            parent = path[-1] if path else None
            start = parent.end if parent else 0
            path.append(self.store.segments.new(start=start, num_tokens=length, order=0, parent=parent))
            segments.append(path[-1])
        has_root = sum(segment.parent is None for segment in segments) == 1
        for order, segment in enumerate(segments, start=not has_root):
            segment.order, segment.num_written = order, segment.num_tokens
        return segments

    def _make_rows(self, node, num_private, num_rows):
        pages = self.store.tables.new(num_private // PAGE_SIZE + 1)
        rows = [DecodeRow(self.segments[node], pages, num_private)]
        while len(rows) < num_rows:
            forked = self.store.tables.fork(pages, num_private // PAGE_SIZE * PAGE_SIZE)
            del forked.pages[0][num_private // PAGE_SIZE :]
            self.store.tables.grow(forked)
            rows.append(DecodeRow(self.segments[node], forked, num_private))
        return rows

    def expected(self):
        """Per packed row the places of all keys that it sees, in order: its path's, root first, then its own.

        A place is ("segment", order, token) or ("page", index, offset).
        """
        items = [(chunk.segment.order, 0, place, chunk) for place, chunk in enumerate(self.chunks)]
        items += [(row.segment.order, 1, place, row) for place, row in enumerate(self.rows)]
        seen = []
        for *_, item in sorted(items, key=lambda item: item[:3]):
            path = _above(item.segment)
            if isinstance(item, PrefillChunk):
                ends = range(item.start + 1, item.end + 1)
                seen += [[*path, *_tokens(item.segment, end)] for end in ends]
            else:
                own = [
                    ("page", item.pages.pages[0][token // PAGE_SIZE].index, token % PAGE_SIZE)
                    for token in range(item.num_private + 1)
                ]
                seen.append([*path, *_tokens(item.segment, item.segment.num_tokens), *own])
        return seen


def _tokens(segment, count):
    return [("segment", segment.order, token) for token in range(count)]


def _above(segment):
    if segment.parent is None:
        return []
    return [*_above(segment.parent), *_tokens(segment.parent, segment.parent.num_tokens)]


@st.composite
def shapes(draw):
    """Forests of up to nine nodes, with chunks and rows anywhere."""
    lengths = st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 130])
    nodes = draw(st.lists(st.tuples(st.integers(0, 4), lengths), min_size=1, max_size=9))
    node = st.integers(0, len(nodes) - 1)
    chunked = draw(st.lists(node, max_size=3, unique=True))
    chunks = tuple((i, draw(st.integers(0, nodes[i][1] - 1))) for i in chunked)
    private = st.sampled_from([0, 1, 14, 15, 16, 17, 31, 32, 40])
    decodes = draw(st.lists(st.tuples(node, private, st.integers(1, 20)), max_size=5))
    return Shape(tuple(nodes), chunks, tuple(decodes))


SHAPES = {
    "one sequence": Shape(((0, 5),), decodes=((0, 0, 1),)),
    "one prefill": Shape(((0, 150),), chunks=((0, 0),)),
    "depth 6": Shape(
        ((0, 40), (1, 3), (2, 70), (3, 1), (4, 64), (5, 9)),
        decodes=((5, 2, 1), (5, 17, 3), (2, 0, 1), (0, 5, 2)),
    ),
    "equal nodes": Shape(
        ((0, 130), (1, 50), (1, 50), (1, 50)), decodes=((1, 1, 16), (2, 2, 16), (3, 3, 16), (0, 33, 4))
    ),
    "uneven nodes": Shape(
        ((0, 70), (1, 40), (1, 45), (1, 50), (1, 30)), decodes=((1, 2, 1), (2, 20, 40), (4, 1, 2))
    ),
    "a forest": Shape(((0, 20), (0, 90), (1, 10)), decodes=((0, 1, 1), (1, 0, 2), (2, 20, 3))),
    "mixed step": Shape(
        ((0, 80), (1, 30), (1, 64), (2, 12), (1, 64)),
        chunks=((2, 27), (3, 0), (4, 63)),
        decodes=((0, 1, 2), (1, 40, 3), (1, 4, 1), (4, 16, 17)),
    ),
}
