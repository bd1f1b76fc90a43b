"""The plan of a step for the Triton kernels: tables of work items, made once and used by every layer.

Whole arrays are computed at once: a step of a thousand nodes costs little more than one of ten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from treeshare.attention.triton_shape import KernelShape

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.attention.layout import BatchLayout
    from treeshare.kv import PagePool, SegmentBlock

PROGRAMS_PER_PROCESSOR = 2
"""A grid with fewer programs than this many for each multiprocessor is cut into chunks."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """A layout as tables on the device, made once a step; int32 but for addresses.

    Attributes:
        layout: What it was made of.
        query_shape: ``(T, Q, D)``.
        shape: What the kernels are compiled for.
        bases: ``[L, B, 2]`` int64: where the keys and the values of each block begin; the last is the pool.
        targets: ``[num_rows, 4]``: where each row's token is stored.
        shared: ``[n, 10]``: work items of ``attend_slices``.
        causal: Likewise, for prefill chunks over their own segment.
        private: ``[n, 4]``: work items of ``attend_pages``.
        pages: Page numbers of all decoding rows.
        source_indptr: ``[T + 1]``.
        sources: ``[n, 3]``: what ``merge_states`` merges.
        numerators: ``[S, Q, D]`` float32: scratch for partial states.
        highs: ``[S, Q]`` float32, likewise.
        totals: ``[S, Q]`` float32, likewise.
    """

    layout: BatchLayout
    query_shape: tuple[int, ...]
    shape: KernelShape
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
    ) -> StepPlan:
        """Plan a step.

        Args:
            layout: What to do.
            query_shape: ``(T, Q, D)``.
            device: Of the tables.
            num_processors: Multiprocessors to keep busy.
            with_scratch: Reserve memory for partial states; without it the plan can be looked at, not run.
        """
        geometry = layout.store.geometry
        shape = KernelShape(
            geometry=geometry,
            group_size=query_shape[1] // geometry.num_kv_heads,
            page_size=layout.store.page_size,
        )
        tables = _Tables(layout, shape, num_processors)
        on_device = {name: torch.from_numpy(table).to(device) for name, table in tables.named().items()}
        num_states = (tables.num_slots, query_shape[1])
        scratch = device if with_scratch else torch.device("meta")
        return cls(
            layout=layout,
            query_shape=query_shape,
            shape=shape,
            source_indptr=torch.from_numpy(tables.source_indptr(query_shape[0])).to(device),
            numerators=torch.empty(*num_states, query_shape[2], device=scratch),
            highs=torch.empty(num_states, device=scratch),
            totals=torch.empty(num_states, device=scratch),
            **on_device,
        )


class _Tables:
    """The tables of a plan as arrays.

    Args:
        layout: The step.
        shape: What the kernels are compiled for.
        num_processors: Multiprocessors to keep busy.
    """

    def __init__(self, layout: BatchLayout, shape: KernelShape, num_processors: int) -> None:
        self._layout, self._shape = layout, shape
        self._enough = PROGRAMS_PER_PROCESSOR * num_processors
        self._blocks = {id(s.block): s.block for s, *_ in layout.slices} | {
            id(c.segment.block): c.segment.block for c in layout.causal
        }
        self._block_ids = {block: number for number, block in enumerate(self._blocks)}
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

    def named(self) -> dict[str, Any]:
        """The tables by the names of ``StepPlan``."""
        sources = np.concatenate([*self._sources, np.zeros((0, 3), np.int64)])[self._order]
        return {
            "bases": self._bases(),
            "targets": self._targets().astype(np.int32),
            "shared": self._shared.astype(np.int32),
            "causal": self._causal.astype(np.int32),
            "private": self._private.astype(np.int32),
            "pages": self._pages.astype(np.int32),
            "sources": sources.astype(np.int32),
        }

    def source_indptr(self, num_packed: int) -> NDArray[np.int32]:
        """Where each row's sources begin; rows of padding have none."""
        counts = np.bincount(self._rows, minlength=num_packed)
        return np.concatenate([[0], counts.cumsum()]).astype(np.int32)

    def _bases(self) -> NDArray[np.int64]:
        """``[L, B, 2]``: addresses; the pool comes last."""
        store = self._layout.store
        held: list[SegmentBlock | PagePool] = [*self._blocks.values(), store.pool]
        addresses = [
            [[block.keys_t[layer].data_ptr(), block.values[layer].data_ptr()] for block in held]
            for layer in range(store.geometry.num_layers)
        ]
        return np.array(addresses, dtype=np.int64)

    def _targets(self) -> NDArray[np.int64]:
        """``[num_rows, 4]``: block, place in it, padded tokens, token."""
        layout, pool = self._layout, len(self._blocks)
        targets = np.zeros((layout.num_rows, 4), np.int64)
        for chunk in layout.causal:
            rows = targets[chunk.first_row : chunk.last_row]
            block = chunk.segment.block
            rows[:, :3] = self._block_ids[id(block)], chunk.segment.index, block.padded_tokens
            rows[:, 3] = np.arange(chunk.start, chunk.end)
        decoding = layout.decode_rows.numpy()
        targets[decoding, 0], targets[decoding, 1] = pool, layout.write_pages.numpy()
        targets[decoding, 2], targets[decoding, 3] = layout.store.page_size, layout.write_offsets.numpy()
        return targets

    def _slice_items(self, slices: list[tuple[Any, int, int, int, int]]) -> NDArray[np.int64]:
        """Work items for slices ``(segment, first row, last row, keys, position of the first row or -1)``."""
        if not slices:
            return np.zeros((0, 10), np.int64)
        first, last, keys, position = np.array([numbers for _, *numbers in slices], dtype=np.int64).T
        places = [(self._block_ids[id(s.block)], s.index, s.block.padded_tokens) for s, *_ in slices]
        block, index, padded = np.array(places, dtype=np.int64).T
        count = last - first
        tile_rows, group_size = self._shape.slice_tile.rows, self._shape.group_size
        num_tiles = -(-count * group_size // tile_rows)
        is_cut = num_tiles.sum() * self._shape.num_heads < self._enough
        num_chunks = -(-keys // self._shape.chunk) if is_cut else np.ones_like(keys)
        first_slot = self._add_sources(first, count, num_chunks)

        of, tile = _expand(num_tiles)
        tile *= tile_rows
        end = keys[of]
        last_seen = (tile + tile_rows - 1) // group_size  # of the causal slice's rows
        end = np.where(position[of] >= 0, np.minimum(end, position[of] + last_seen + 1), end)
        item, chunk = _expand(num_chunks[of])
        of, tile, end = of[item], tile[item], end[item]
        if is_cut:
            begin = np.minimum(chunk * self._shape.chunk, end)
            end = np.minimum(begin + self._shape.chunk, end)
        else:
            begin = np.zeros_like(end)
        slot = first_slot[of] + chunk * count[of]
        return np.stack(
            [first[of], last[of], tile, block[of], index[of], padded[of], begin, end, slot, position[of]], 1
        )

    def _page_items(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Work items for the decoding rows, and their page numbers."""
        layout = self._layout
        if not layout.decodes:
            return np.zeros((0, 4), np.int64), _no_rows()
        size = layout.store.page_size
        tokens = np.array([row.num_private + 1 for row in layout.decodes], dtype=np.int64)
        num_pages = -(-tokens // size)
        pages = np.array(
            [
                page.index
                for row, count in zip(layout.decodes, num_pages.tolist(), strict=True)
                for page in row.pages[:count]
            ],
            dtype=np.int64,
        )
        step = self._shape.page_chunk
        is_cut = len(tokens) * self._shape.num_heads < self._enough
        num_chunks = -(-tokens // step) if is_cut else np.ones_like(tokens)
        first_slot = self._add_sources(layout.decode_rows.numpy(), np.ones_like(tokens), num_chunks)
        of, chunk = _expand(num_chunks)
        first_page = (num_pages.cumsum() - num_pages)[of] + chunk * (step // size)
        length = np.minimum(tokens[of] - chunk * step, step if is_cut else tokens[of])
        return np.stack(
            [layout.decode_rows.numpy()[of], first_page, length, first_slot[of] + chunk], 1
        ), pages

    def _add_sources(
        self, first_row: NDArray[np.int64], count: NDArray[np.int64], num_chunks: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Give ``count`` rows from ``first_row`` on a slot per chunk; returns each slice's first slot."""
        sizes = count * num_chunks
        first_slot: NDArray[np.int64] = self.num_slots + sizes.cumsum() - sizes
        self.num_slots += int(sizes.sum())
        of, place = _expand(count)
        self._source_rows.append(first_row[of] + place)
        self._sources.append(np.stack([first_slot[of] + place, count[of], num_chunks[of]], 1))
        return first_slot


def _no_rows() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


def _expand(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each of ``counts[i]`` copies of ``i``: ``i``, and its place among them."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) - np.repeat(counts.cumsum() - counts, counts)
