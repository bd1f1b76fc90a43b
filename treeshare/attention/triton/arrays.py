"""A step as arrays for the Triton kernels: whole arrays are computed at once, whatever the tree.

A step of a thousand nodes costs little more than one of ten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from treeshare.attention.api import AttentionSpec
from treeshare.attention.layout import seen_slices
from treeshare.attention.triton.columns import PageColumn, SliceColumn, SourceColumn, TargetColumn
from treeshare.attention.triton.shape import KernelShape
from treeshare.config import SEGMENT_ALIGNMENT
from treeshare.kv import page_index

if TYPE_CHECKING:
    from collections.abc import Mapping
    from enum import IntEnum

    from numpy.typing import NDArray

    from treeshare.attention.layout import BatchLayout

_Column = TypeVar("_Column", TargetColumn, SliceColumn, PageColumn, SourceColumn)

PROGRAMS_PER_PROCESSOR = 2
"""A grid with fewer programs than this many for each multiprocessor is cut into chunks."""

MIN_CAPACITY = 64
"""Minimum number of entries of a table that has room for more."""


class PlanKey(NamedTuple):
    """What a plan depends on beside its layout; layers that agree in it share a plan.

    Attributes:
        shape: What the kernels are compiled for.
        num_packed: ``T``, rows of padding included.
        window: See ``AttentionSpec``.
        chunk: Likewise.
    """

    shape: KernelShape
    num_packed: int
    window: int | None
    chunk: int | None

    @classmethod
    def of(
        cls, layout: BatchLayout, layer: int, spec: AttentionSpec, num_packed: int, num_q_heads: int
    ) -> PlanKey:
        """Of a call of attention to a layer with ``num_q_heads`` query heads."""
        geometry = layout.store.geometry
        shape = KernelShape(
            layer=geometry.layers[layer],
            dtype=geometry.dtype,
            group_size=num_q_heads // geometry.layers[layer].num_heads,
            page_size=layout.store.page_size,
        )
        return cls(shape, num_packed, spec.window, spec.chunk)


class StepArrays:
    """The tables of a plan as arrays.

    Args:
        layout: The step.
        key: What else it depends on.
        num_processors: Multiprocessors to keep busy.

    Attributes:
        num_slots: Partial states.
    """

    def __init__(self, layout: BatchLayout, key: PlanKey, num_processors: int) -> None:
        self.layout, self.shape, self._num_packed = layout, key.shape, key.num_packed
        self._pool = layout.store.geometry.reaches.index(key.shape.layer.reach)
        self._first_seen = _first_seen(layout, key)
        self._min_programs = PROGRAMS_PER_PROCESSOR * num_processors
        slices = seen_slices(layout.slices, self._first_seen)
        self._blocks = {id(s.block): s.block for s, *_ in slices} | {
            id(c.segment.block): c.segment.block for c in layout.causal
        }
        self._block_ids = {block: number for number, block in enumerate(self._blocks, 1)}  # the pool is 0
        self.num_slots = 0
        self._source_rows: list[NDArray[np.int64]] = []
        self._sources: list[NDArray[np.int64]] = []
        self._shared = self._slice_items([(s, first, last, s.num_tokens, -1) for s, first, last in slices])
        self._causal = self._slice_items(
            [(c.segment, c.first_row, c.last_row, c.end, c.start) for c in layout.causal]
        )
        self._private, self._pages = self._page_items()
        self._rows = np.concatenate([*self._source_rows, _no_rows()])
        self._order = np.argsort(self._rows, kind="stable")

    def named(self) -> dict[str, NDArray[Any]]:
        """The tables by the names of ``KernelTables``."""
        counts = np.bincount(self._rows, minlength=self._num_packed)  # rows of padding have no sources
        first_seen = _no_rows() if self._first_seen is None else self._first_seen
        tables = {
            "targets": self._targets(),
            "first_seen": first_seen,
            "shared": self._shared,
            "causal": self._causal,
            "private": self._private,
            "pages": self._pages,
            "source_indptr": np.concatenate([[0], counts.cumsum()]),
            "sources": np.concatenate([*self._sources, _no_items(SourceColumn)])[self._order],
        }
        return {"bases": self._bases()} | {name: table.astype(np.int32) for name, table in tables.items()}

    def padded(self) -> tuple[dict[str, NDArray[Any]], int]:
        """The tables with room for more, so that few sizes serve all steps; and the number of slots.

        The added entries do nothing: a row that stores nothing, a slice without rows, pages without tokens
        whose state goes to the last slot, which nothing reads.
        """
        tables, num_slots = self.named(), _capacity(self.num_slots + 1)
        grown = {
            name: _grown(tables[name], 0) for name in ("shared", "causal", "private", "pages", "sources")
        }
        grown["private"][len(self._private) :, PageColumn.SLOT] = num_slots - 1
        grown["bases"] = _grown(tables["bases"], 1)
        num_missing = self._num_packed - self.layout.num_rows
        grown["targets"] = np.pad(tables["targets"], [(0, num_missing), (0, 0)])
        if self._first_seen is not None:
            grown["first_seen"] = np.pad(tables["first_seen"], (0, num_missing))
        return tables | grown, num_slots

    def _bases(self) -> NDArray[np.int64]:
        """``[L, B, 2]``: addresses; the pool comes first."""
        store = self.layout.store
        addresses = []
        for layer in range(store.geometry.num_layers):
            pool = store.pool_of(layer)
            tensors = [(pool.keys[layer], pool.values[layer])]
            tensors += [(block.keys_t[layer], block.values[layer]) for block in self._blocks.values()]
            addresses.append([[keys.data_ptr(), values.data_ptr()] for keys, values in tensors])
        return np.array(addresses, dtype=np.int64)

    def _targets(self) -> NDArray[np.int64]:
        """``[num_rows, TargetColumn]``; private pages are block 0."""
        layout = self.layout
        targets = np.zeros((layout.num_rows, len(TargetColumn)), np.int64)
        for chunk in layout.causal:
            rows = targets[chunk.first_row : chunk.last_row]
            block = chunk.segment.block
            rows[:, TargetColumn.BLOCK] = self._block_ids[id(block)]
            rows[:, TargetColumn.INDEX] = chunk.segment.index
            rows[:, TargetColumn.PADDED_TOKENS] = block.padded_tokens
            rows[:, TargetColumn.TOKEN] = np.arange(chunk.start, chunk.end)
        decoding = layout.decode_rows.numpy()
        targets[decoding, TargetColumn.INDEX] = layout.write_pages[self._pool].numpy()
        targets[decoding, TargetColumn.PADDED_TOKENS] = layout.store.page_size
        targets[decoding, TargetColumn.TOKEN] = layout.write_offsets.numpy()
        return targets

    def _slice_items(self, slices: list[tuple[Any, int, int, int, int]]) -> NDArray[np.int64]:
        """Work items for slices ``(segment, first row, last row, keys, position of the first row or -1)``."""
        if not slices:
            return _no_items(SliceColumn)
        first, last, keys, position = np.array([numbers for _, *numbers in slices], dtype=np.int64).T
        places = [(self._block_ids[id(s.block)], s.index, s.block.padded_tokens, s.start) for s, *_ in slices]
        block, index, padded, start = np.array(places, dtype=np.int64).T
        count, step = last - first, self.shape.chunk
        tile_rows, group_size = self.shape.slice_tile.rows, self.shape.group_size
        num_tiles = -(-count * group_size // tile_rows)
        is_cut = num_tiles.sum() * self.shape.num_kv_heads < self._min_programs
        first_chunk = self._first_keys(first, last, start) // step
        num_chunks = -(-keys // step) - first_chunk if is_cut else np.ones_like(keys)
        first_slot = self._add_sources(first, count, num_chunks)

        owner, tile = _expand(num_tiles)
        tile *= tile_rows
        end = keys[owner]
        last_seen = (tile + tile_rows - 1) // group_size  # of the causal slice's rows
        end = np.where(position[owner] >= 0, np.minimum(end, position[owner] + last_seen + 1), end)
        tile_last = first[owner] + np.minimum(last_seen + 1, count[owner])
        begin = self._first_keys(first[owner] + tile // group_size, tile_last, start[owner])
        begin = np.minimum(begin // SEGMENT_ALIGNMENT * SEGMENT_ALIGNMENT, end)

        item, chunk = _expand(num_chunks[owner])
        owner, tile, begin, end = owner[item], tile[item], begin[item], end[item]
        if is_cut:
            chunk_start = (first_chunk[owner] + chunk) * step
            begin, end = np.clip([chunk_start, chunk_start + step], begin, end)
        return _items(
            {
                SliceColumn.FIRST_ROW: first[owner],
                SliceColumn.LAST_ROW: last[owner],
                SliceColumn.FIRST_TILE_ROW: tile,
                SliceColumn.BLOCK: block[owner],
                SliceColumn.INDEX: index[owner],
                SliceColumn.PADDED_TOKENS: padded[owner],
                SliceColumn.FIRST_KEY: begin,
                SliceColumn.LAST_KEY: end,
                SliceColumn.FIRST_SLOT: first_slot[owner] + chunk * count[owner],
                SliceColumn.POSITION: position[owner],
                SliceColumn.START: start[owner],
            }
        )

    def _first_keys(
        self, first_row: NDArray[np.int64], last_row: NDArray[np.int64], start: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The first key of segments from ``start`` on that any of the rows sees; beyond them if none does."""
        if self._first_seen is None:
            return np.zeros_like(start)
        bounds = np.stack([first_row, last_row], 1).ravel()
        oldest = np.minimum.reduceat(np.append(self._first_seen, 0), bounds)[::2]
        return np.maximum(oldest - start, 0)

    def _page_items(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Work items for the decoding rows, and their page numbers from the first chunk on that each sees."""
        layout = self.layout
        if not layout.decodes:
            return _no_items(PageColumn), _no_rows()
        rows, size, step = layout.decode_rows.numpy(), layout.store.page_size, self.shape.page_chunk
        tokens = np.array([row.num_private + 1 for row in layout.decodes], dtype=np.int64)
        ends = np.array([row.segment.end for row in layout.decodes], dtype=np.int64)
        first = self._first_keys(rows, rows + 1, ends)
        oldest, first_chunk = first // size, first // step
        tokens -= first_chunk * step
        first -= first_chunk * step
        num_pages = -(-tokens // size)
        places = zip(layout.decodes, oldest.tolist(), (first_chunk * (step // size)).tolist(), strict=True)
        pages = [
            page_index(row.pages.pages[self._pool][ordinal]) if ordinal >= before else 0  # not read
            for (row, before, begin), count in zip(places, num_pages.tolist(), strict=True)
            for ordinal in range(begin, begin + count)
        ]
        assert min(pages) >= 0, "a page that a row sees was given back"
        is_cut = len(tokens) * self.shape.num_kv_heads < self._min_programs
        num_chunks = -(-tokens // step) if is_cut else np.ones_like(tokens)
        first_slot = self._add_sources(rows, np.ones_like(tokens), num_chunks)
        owner, chunk = _expand(num_chunks)
        left = tokens[owner] - chunk * step
        items = {
            PageColumn.ROW: rows[owner],
            PageColumn.FIRST_PAGE: (num_pages.cumsum() - num_pages)[owner] + chunk * (step // size),
            PageColumn.NUM_TOKENS: np.minimum(left, step) if is_cut else left,
            PageColumn.SLOT: first_slot[owner] + chunk,
            PageColumn.FIRST_TOKEN: np.maximum(first[owner] - chunk * step, 0),
        }
        return _items(items), np.array(pages, dtype=np.int64)

    def _add_sources(
        self, first_row: NDArray[np.int64], count: NDArray[np.int64], num_chunks: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Give ``count`` rows from ``first_row`` on a slot per chunk; returns each slice's first slot."""
        sizes = count * num_chunks
        first_slot: NDArray[np.int64] = self.num_slots + sizes.cumsum() - sizes
        self.num_slots += int(sizes.sum())
        owner, place = _expand(count)
        self._source_rows.append(first_row[owner] + place)
        sources = {
            SourceColumn.FIRST_SLOT: first_slot[owner] + place,
            SourceColumn.SLOT_STEP: count[owner],
            SourceColumn.NUM_CHUNKS: num_chunks[owner],
        }
        self._sources.append(_items(sources))
        return first_slot


def _first_seen(layout: BatchLayout, key: PlanKey) -> NDArray[np.int64] | None:
    """Position of the first key that each row sees; None without a window."""
    if key.window is None and key.chunk is None:
        return None
    spec = AttentionSpec(scale=1.0, window=key.window, chunk=key.chunk)
    found: NDArray[np.int64] = spec.first_seen(layout.positions).numpy()
    return found


def _items(columns: Mapping[_Column, NDArray[np.int64]]) -> NDArray[np.int64]:
    """A table of work items; all columns of a kind are given."""
    kind = type(next(iter(columns)))
    assert set(columns) == set(kind), "a column is missing"
    return np.stack([columns[column] for column in kind], 1)


def _no_items(kind: type[IntEnum]) -> NDArray[np.int64]:
    return np.zeros((0, len(kind)), np.int64)


def _no_rows() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


def _expand(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each of ``counts[i]`` copies of ``i``: ``i``, and its place among them."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(counts.cumsum() - counts, counts)


def _capacity(count: int) -> int:
    """Entries of a table with room for ``count``: a power of two, or 0 for 0."""
    return max(1 << (count - 1).bit_length(), MIN_CAPACITY) if count else 0


def _grown(table: NDArray[Any], axis: int) -> NDArray[Any]:
    """``table`` with zeros after it, up to its capacity."""
    widths = [(0, 0)] * table.ndim
    widths[axis] = (0, _capacity(table.shape[axis]) - table.shape[axis])
    return np.pad(table, widths)
