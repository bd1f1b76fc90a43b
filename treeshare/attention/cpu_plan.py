"""What the ``cpu`` backend plans beside the layout: slices and pages as batched matmuls.

Shapes: ``P`` live pages, ``X`` repeats of pages that several sequences share.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from treeshare.config import SEGMENT_ALIGNMENT
from treeshare.kv import Segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from treeshare.attention.layout import BatchLayout, DecodeRow, SharedSlice
    from treeshare.kv import KVStore, SegmentBlock

MIN_QUERIES = 16
"""Minimum number of query rows of a matmul: with fewer, libraries use kernels that sum in another order."""

MAX_PADDING = 2.0
"""Nodes share a batched matmul while padding to the largest slice at most doubles the work."""


@dataclass(frozen=True, slots=True)
class SharedGroup:
    """Neighbouring segments of one block, each with the slice of rows below it, padded to one size.

    Attributes:
        block: Where their KV lies, at places ``[first, last)``.
        rows: ``[num_nodes, num_padded]`` int64 row of each query; or a slice when the rows are contiguous and
            need no padding, so that no gather is needed.
        num_padded: Queries per node.
        valid: ``[num_valid]`` int64: which of the flattened ``rows`` are no padding; None when none is.
        padding: ``[num_nodes, SEGMENT_ALIGNMENT]`` bool: which of the last keys are padding; None when none
            is.
    """

    block: SegmentBlock
    first: int
    last: int
    rows: Tensor | slice
    num_padded: int
    valid: Tensor | None
    padding: Tensor | None


@dataclass(frozen=True, slots=True)
class PrivatePages:
    """All live private pages and the rows that attend to them.

    Place ``i < P`` is page ``i`` with the first row that attends to it. A page that several sequences share
    is repeated at one of the ``X`` places from ``P`` on for each of its other rows.

    Attributes:
        num_pages: ``P``, pages ``[0, P)`` of the pool.
        repeated: ``[X]`` int64: the page of each place from ``P`` on.
        rows: ``[P + X]`` int64: the row that attends at each place.
        unwritten: ``[P + X, page_size]`` bool: keys that hold no token.
        ordinals: For the first, second, ... page of every sequence: the places and their rows, int64.
    """

    num_pages: int
    repeated: Tensor
    rows: Tensor
    unwritten: Tensor
    ordinals: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """A layout as batched matmuls, made once a step and used by every layer.

    Attributes:
        layout: The layout that it was made from.
        shared: The slices, root first.
        private: The decoding rows' pages; None when no row decodes.
    """

    layout: BatchLayout
    shared: tuple[SharedGroup, ...]
    private: PrivatePages | None

    @classmethod
    def of(cls, layout: BatchLayout) -> CpuPlan:
        """Plan a step."""
        private = None
        if layout.decodes:
            private = _private_pages(layout.store, layout.decodes, layout.decode_rows.tolist())
        return cls(layout, _shared_groups(layout.slices), private)


def _shared_groups(slices: Sequence[SharedSlice]) -> tuple[SharedGroup, ...]:
    """Batch the slices of neighbouring segments of one level and block; two of one segment never together."""
    levels: dict[tuple[int, int, int], list[SharedSlice]] = {}
    num_slices = Counter[Segment]()
    for member in slices:
        segment = member.segment
        key = (len(segment.path()), id(segment.block), num_slices[segment])
        levels.setdefault(key, []).append(member)
        num_slices[segment] += 1
    groups: list[SharedGroup] = []
    for _, members in sorted(levels.items(), key=lambda item: item[0][0]):
        members.sort(key=lambda member: member[0].index)
        run: list[SharedSlice] = []
        for member in members:
            if run and not _fits(run, member):
                groups.append(_shared_group(run))
                run = []
            run.append(member)
        groups.append(_shared_group(run))
    return tuple(groups)


def _fits(run: list[SharedSlice], member: SharedSlice) -> bool:
    """Whether ``member`` may join the batched matmul of ``run``."""
    if member[0].index != run[-1][0].index + 1:
        return False
    counts = [last - first for _, first, last in [*run, member]]
    return max(counts) * len(counts) <= MAX_PADDING * sum(counts)


def _shared_group(run: list[SharedSlice]) -> SharedGroup:
    block = run[0][0].block
    counts = [last - first for _, first, last in run]
    num_padded = max(*counts, MIN_QUERIES)
    contiguous = all(previous[2] == following[1] for previous, following in pairwise(run))
    rows: Tensor | slice
    valid = None
    if contiguous and min(counts) == num_padded:
        rows = slice(run[0][1], run[-1][2])
    else:
        steps = np.arange(num_padded)
        grid = np.stack([np.where(steps < last - first, first + steps, first) for _, first, last in run])
        real = np.stack([steps < count for count in counts])
        rows, valid = torch.from_numpy(grid), torch.from_numpy(np.flatnonzero(real))
    return SharedGroup(
        block, run[0][0].index, run[-1][0].index + 1, rows, num_padded, valid, _key_padding(run)
    )


def _key_padding(run: list[SharedSlice]) -> Tensor | None:
    """``SharedGroup.padding`` of a run of slices."""
    used = [segment.num_tokens - segment.block.padded_tokens + SEGMENT_ALIGNMENT for segment, _, _ in run]
    if min(used) == SEGMENT_ALIGNMENT:
        return None
    return torch.arange(SEGMENT_ALIGNMENT).unsqueeze(0) >= torch.tensor(used).unsqueeze(1)


def _private_pages(store: KVStore, rows: Sequence[DecodeRow], row_ids: Sequence[int]) -> PrivatePages:
    size, num_pages = store.page_size, store.pools[0].num_live
    owners, used, repeated = [-1] * num_pages, [0] * num_pages, list[int]()
    by_ordinal: dict[int, list[tuple[int, int]]] = {}
    for row, row_id in zip(rows, row_ids, strict=True):
        for ordinal, page in enumerate(row.pages.held(0)[: row.num_private // size + 1]):
            place, num_used = page.index, min(row.num_private + 1 - ordinal * size, size)
            if owners[place] < 0:
                owners[place], used[place] = row_id, num_used
            else:
                place = len(owners)
                repeated.append(page.index)
                owners.append(row_id)
                used.append(num_used)
            by_ordinal.setdefault(ordinal, []).append((place, row_id))
    ordinals = tuple(
        (torch.tensor([place for place, _ in pairs]), torch.tensor([row for _, row in pairs]))
        for _, pairs in sorted(by_ordinal.items())
    )
    unwritten = torch.arange(size).unsqueeze(0) >= torch.tensor(used).unsqueeze(1)
    attending = torch.tensor(owners).clamp_(min=0)
    return PrivatePages(num_pages, torch.tensor(repeated, dtype=torch.int64), attending, unwritten, ordinals)
