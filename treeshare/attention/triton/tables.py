"""The plan of a step for the Triton kernels: tables of work items, made once and used by every layer.

Whole arrays are computed at once: a step of a thousand nodes costs little more than one of ten. They go
to the device as one copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from treeshare.attention.triton.columns import PageColumn, SliceColumn, SourceColumn, TargetColumn
from treeshare.attention.triton.shape import KernelShape
from treeshare.devices import upload

if TYPE_CHECKING:
    from collections.abc import Mapping
    from enum import IntEnum

    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.attention.layout import BatchLayout

_Column = TypeVar("_Column", TargetColumn, SliceColumn, PageColumn, SourceColumn)

PROGRAMS_PER_PROCESSOR = 2
"""A grid with fewer programs than this many for each multiprocessor is cut into chunks."""

MIN_CAPACITY = 64
"""Minimum number of entries of a table that has room for more."""

ALIGNMENT = 64
"""Tables begin at multiples of this many int32, wherever they lie, so that no kernel is compiled twice."""


@dataclass(frozen=True, kw_only=True)
class KernelTables:
    """A layout as tables on the device, made once a step; int32 but for addresses.

    Attributes:
        layout: The layout that they were made from.
        query_shape: ``(T, Q, D)``.
        shape: What the kernels are compiled for.
        memory: All tables, one after another.
        bases: ``[L, B, 2]`` int64: where the keys and the values of each block begin; the first is the pool.
        targets: ``[num_rows, TargetColumn]``: where each row's token is stored.
        shared: ``[n, SliceColumn]``: work items of ``attend_slices``.
        causal: Likewise, for prefill chunks over their own segment.
        private: ``[n, PageColumn]``: work items of ``attend_pages``.
        pages: Page numbers of all decoding rows.
        source_indptr: ``[T + 1]``: where each row's entries of ``sources`` begin.
        sources: ``[n, SourceColumn]``: what ``merge_states`` merges.
        numerators: ``[S, Q, D]`` float32: scratch for partial states.
        highs: ``[S, Q]`` float32, likewise.
        totals: ``[S, Q]`` float32, likewise.
    """

    layout: BatchLayout
    query_shape: tuple[int, ...]
    shape: KernelShape
    memory: Tensor
    bases: Tensor
    targets: Tensor
    shared: Tensor
    causal: Tensor
    private: Tensor
    pages: Tensor
    source_indptr: Tensor
    sources: Tensor
    numerators: Tensor
    highs: Tensor
    totals: Tensor

    @classmethod
    def make(
        cls,
        layout: BatchLayout,
        query_shape: tuple[int, ...],
        device: torch.device,
        num_processors: int,
        *,
        with_scratch: bool = True,
    ) -> KernelTables:
        """Plan a step.

        Args:
            layout: What to do.
            query_shape: ``(T, Q, D)``.
            device: Of the tables.
            num_processors: Multiprocessors to keep busy.
            with_scratch: Reserve memory for partial states; a plan without it can be inspected, not run.
        """
        tables = _Tables(layout, query_shape, num_processors)
        scratch = device if with_scratch else torch.device("meta")
        return cls._uploaded(tables, tables.named(), tables.num_slots, device, scratch)

    @classmethod
    def make_fixed(
        cls,
        layout: BatchLayout,
        query_shape: tuple[int, ...],
        device: torch.device,
        num_processors: int,
        plans: dict[TablesSize, KernelTables],
    ) -> TablesSize:
        """Plan a step in the memory of an earlier plan of the same size, where a CUDA graph reads it.

        Args:
            layout: What to do.
            query_shape: ``(T, Q, D)``.
            device: Of the tables.
            num_processors: Multiprocessors to keep busy.
            plans: The plans so far, by size. That of this size is overwritten, or a new one is added.

        Returns:
            The size, under which ``plans`` holds the plan.
        """
        tables = _Tables(layout, query_shape, num_processors)
        named, num_slots = tables.padded()
        size = (num_slots, *(table.shape for table in named.values()))
        if size in plans:
            upload(_flat(named)[0], device, out=plans[size].memory)
            plans[size] = replace(plans[size], layout=layout)
        else:
            plans[size] = cls._uploaded(tables, named, num_slots, device, device)
        return size

    @classmethod
    def _uploaded(
        cls,
        tables: _Tables,
        named: dict[str, NDArray[Any]],
        num_slots: int,
        device: torch.device,
        scratch: torch.device,
    ) -> KernelTables:
        """The tables of a plan, ``named``, on ``device``, with scratch memory on ``scratch``."""
        flat, starts = _flat(named)
        memory = upload(flat, device)
        views = {}
        for start, (name, table) in zip(starts, named.items(), strict=True):
            part = memory[start : start + table.nbytes // 4]
            views[name] = (part.view(torch.int64) if table.itemsize == 8 else part).view(table.shape)
        query_shape = tables.query_shape
        return cls(
            layout=tables.layout,
            query_shape=query_shape,
            shape=tables.shape,
            memory=memory,
            numerators=torch.empty(num_slots, *query_shape[1:], device=scratch),
            highs=torch.empty(num_slots, query_shape[1], device=scratch),
            totals=torch.empty(num_slots, query_shape[1], device=scratch),
            **views,
        )


TablesSize = tuple[Any, ...]
"""Number of partial states, and the tables' shapes: they fix the grids of all launches and all addresses."""


def _flat(named: dict[str, NDArray[Any]]) -> tuple[NDArray[np.int32], list[int]]:
    """The tables one after another as int32, and where each begins."""
    sizes = [-(-table.nbytes // 4 // ALIGNMENT) * ALIGNMENT for table in named.values()]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    flat = np.zeros(sum(sizes), np.int32)
    for start, table in zip(starts, named.values(), strict=True):
        flat[start : start + table.nbytes // 4] = table.reshape(-1).view(np.int32)
    return flat, starts


class _Tables:
    """The tables of a plan as arrays.

    Args:
        layout: The step.
        query_shape: ``(T, Q, D)``.
        num_processors: Multiprocessors to keep busy.
    """

    def __init__(self, layout: BatchLayout, query_shape: tuple[int, ...], num_processors: int) -> None:
        geometry = layout.store.geometry
        self.layout, self.query_shape = layout, query_shape
        self.shape = KernelShape(
            geometry=geometry,
            group_size=query_shape[1] // geometry.layers[0].num_heads,
            page_size=layout.store.page_size,
        )
        self._min_programs = PROGRAMS_PER_PROCESSOR * num_processors
        self._blocks = {id(s.block): s.block for s, *_ in layout.slices} | {
            id(c.segment.block): c.segment.block for c in layout.causal
        }
        self._block_ids = {block: number for number, block in enumerate(self._blocks, 1)}  # the pool is 0
        self.num_slots = 0
        self._source_rows: list[NDArray[np.int64]] = []
        self._sources: list[NDArray[np.int64]] = []
        self._shared = self._slice_items(
            [(s, first, last, s.num_tokens, -1) for s, first, last in layout.slices]
        )
        self._causal = self._slice_items(
            [(c.segment, c.first_row, c.last_row, c.end, c.start) for c in layout.causal]
        )
        self._private, self._pages = self._page_items()
        self._rows = np.concatenate([*self._source_rows, _no_rows()])
        self._order = np.argsort(self._rows, kind="stable")

    def named(self) -> dict[str, NDArray[Any]]:
        """The tables by the names of ``KernelTables``."""
        counts = np.bincount(self._rows, minlength=self.query_shape[0])  # rows of padding have no sources
        tables = {
            "targets": self._targets(),
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
        grown["targets"] = np.zeros((self.query_shape[0], len(TargetColumn)), np.int32)
        grown["targets"][: len(tables["targets"])] = tables["targets"]
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
        targets[decoding, TargetColumn.INDEX] = layout.write_pages[0].numpy()
        targets[decoding, TargetColumn.PADDED_TOKENS] = layout.store.page_size
        targets[decoding, TargetColumn.TOKEN] = layout.write_offsets.numpy()
        return targets

    def _slice_items(self, slices: list[tuple[Any, int, int, int, int]]) -> NDArray[np.int64]:
        """Work items for slices ``(segment, first row, last row, keys, position of the first row or -1)``."""
        if not slices:
            return _no_items(SliceColumn)
        first, last, keys, position = np.array([numbers for _, *numbers in slices], dtype=np.int64).T
        places = [(self._block_ids[id(s.block)], s.index, s.block.padded_tokens) for s, *_ in slices]
        block, index, padded = np.array(places, dtype=np.int64).T
        count = last - first
        tile_rows, group_size = self.shape.slice_tile.rows, self.shape.group_size
        num_tiles = -(-count * group_size // tile_rows)
        is_cut = num_tiles.sum() * self.shape.num_kv_heads < self._min_programs
        num_chunks = -(-keys // self.shape.chunk) if is_cut else np.ones_like(keys)
        first_slot = self._add_sources(first, count, num_chunks)

        owner, tile = _expand(num_tiles)
        tile *= tile_rows
        end = keys[owner]
        last_seen = (tile + tile_rows - 1) // group_size  # of the causal slice's rows
        end = np.where(position[owner] >= 0, np.minimum(end, position[owner] + last_seen + 1), end)
        item, chunk = _expand(num_chunks[owner])
        owner, tile, end = owner[item], tile[item], end[item]
        if is_cut:
            begin = np.minimum(chunk * self.shape.chunk, end)
            end = np.minimum(begin + self.shape.chunk, end)
        else:
            begin = np.zeros_like(end)
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
            }
        )

    def _page_items(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Work items for the decoding rows, and their page numbers."""
        layout = self.layout
        if not layout.decodes:
            return _no_items(PageColumn), _no_rows()
        size = layout.store.page_size
        tokens = np.array([row.num_private + 1 for row in layout.decodes], dtype=np.int64)
        num_pages = -(-tokens // size)
        pages = np.array(
            [
                page.index
                for row, count in zip(layout.decodes, num_pages.tolist(), strict=True)
                for page in row.pages.held(0)[:count]
            ],
            dtype=np.int64,
        )
        step = self.shape.page_chunk
        is_cut = len(tokens) * self.shape.num_kv_heads < self._min_programs
        num_chunks = -(-tokens // step) if is_cut else np.ones_like(tokens)
        first_slot = self._add_sources(layout.decode_rows.numpy(), np.ones_like(tokens), num_chunks)
        owner, chunk = _expand(num_chunks)
        left = tokens[owner] - chunk * step
        items = {
            PageColumn.ROW: layout.decode_rows.numpy()[owner],
            PageColumn.FIRST_PAGE: (num_pages.cumsum() - num_pages)[owner] + chunk * (step // size),
            PageColumn.NUM_TOKENS: np.minimum(left, step) if is_cut else left,
            PageColumn.SLOT: first_slot[owner] + chunk,
        }
        return _items(items), pages

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
    """``table`` with zeros behind it, up to its capacity."""
    widths = [(0, 0)] * table.ndim
    widths[axis] = (0, _capacity(table.shape[axis]) - table.shape[axis])
    return np.pad(table, widths)
