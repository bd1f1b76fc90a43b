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

from treeshare.attention.layout import SharedSlice, seen_slices
from treeshare.config import SEGMENT_ALIGNMENT
from treeshare.kv import Segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.attention.layout import BatchLayout
    from treeshare.kv import SegmentBlock

MIN_QUERIES = 16
"""Minimum number of query rows of a matmul: with fewer, libraries use kernels that sum in another order."""

MAX_PADDING = 2.0
"""Nodes share a batched matmul while padding to the largest slice at most doubles the work."""


@dataclass(frozen=True, slots=True)
class SharedGroup:
    """Neighbouring segments of one block, each with the slice of rows below it, padded to one size.

    Attributes:
        block: Where their KV lies, at places ``[first, last)``.
        first_key: No row sees keys before it, which are not read; a multiple of ``SEGMENT_ALIGNMENT``.
        rows: ``[num_nodes, num_padded]`` int64 row of each query; or a slice when the rows are contiguous and
            need no padding, so that no gather is needed.
        num_padded: Queries per node.
        valid: ``[num_valid]`` int64: which of the flattened ``rows`` are no padding; None when none is.
        padding: ``[num_nodes, SEGMENT_ALIGNMENT]`` bool: which of the last keys are padding; None when none
            is.
        unseen: ``[num_nodes, num_padded, n]`` bool: which of the ``n`` keys from ``first_key`` on come before
            the first that a query sees; None when all rows see all of them.
    """

    block: SegmentBlock
    first: int
    last: int
    first_key: int
    rows: Tensor | slice
    num_padded: int
    valid: Tensor | None
    padding: Tensor | None
    unseen: Tensor | None


@dataclass(frozen=True, slots=True)
class PrivatePages:
    """The private pages that are read and the rows that attend to them.

    Place ``i < P`` is page ``i`` with the first row that attends to it. A page that several sequences share
    is repeated at one of the ``X`` places from ``P`` on for each of its other rows. Where windows leave out
    some of the live pages, ``P`` is 0, and every page that is read is one of the ``X``.

    Attributes:
        num_pages: ``P``, pages ``[0, P)`` of the pool.
        repeated: ``[X]`` int64: the page of each place from ``P`` on.
        rows: ``[P + X]`` int64: the row that attends at each place.
        unseen: ``[P + X, page_size]`` bool: keys that hold no token, or one before the row's first.
        ordinals: For the first, second, ... page that every sequence sees: the places and their rows, int64.
    """

    num_pages: int
    repeated: Tensor
    rows: Tensor
    unseen: Tensor
    ordinals: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """A layout as batched matmuls, made once a step for all layers of one window and pool.

    Attributes:
        layout: The layout that it was made from.
        first_seen: Position of the first key that each row sees; None if every row sees all before it.
        shared: The slices, root first.
        private: The decoding rows' pages; None when no row decodes.
    """

    layout: BatchLayout
    first_seen: Tensor | None
    shared: tuple[SharedGroup, ...]
    private: PrivatePages | None

    @classmethod
    def of(cls, layout: BatchLayout, first_seen: Tensor | None = None, *, pool: int = 0) -> CpuPlan:
        """Plan a step; ``first_seen`` ``[num_rows]`` int64; ``pool``: the place among the store's."""
        seen = None if first_seen is None else first_seen.numpy()
        private = _private_pages(layout, seen, pool) if layout.decodes else None
        return cls(layout, first_seen, _shared_groups(seen_slices(layout.slices, seen), seen), private)


def _shared_groups(
    slices: Sequence[SharedSlice], first_seen: NDArray[np.int64] | None
) -> tuple[SharedGroup, ...]:
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
                groups.append(_shared_group(run, first_seen))
                run = []
            run.append(member)
        groups.append(_shared_group(run, first_seen))
    return tuple(groups)


def _fits(run: list[SharedSlice], member: SharedSlice) -> bool:
    """Whether ``member`` may join the batched matmul of ``run``."""
    if member[0].index != run[-1][0].index + 1:
        return False
    counts = [last - first for _, first, last in [*run, member]]
    return max(counts) * len(counts) <= MAX_PADDING * sum(counts)


def _shared_group(run: list[SharedSlice], first_seen: NDArray[np.int64] | None) -> SharedGroup:
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
    first_key, unseen = 0, None
    if first_seen is not None:
        grid = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows.numpy()
        first_key, unseen = _unseen_keys(run, first_seen[grid.reshape(len(run), num_padded)])
    return SharedGroup(
        block=block,
        first=run[0][0].index,
        last=run[-1][0].index + 1,
        first_key=first_key,
        rows=rows,
        num_padded=num_padded,
        valid=valid,
        padding=_key_padding(run),
        unseen=unseen,
    )


def _unseen_keys(run: list[SharedSlice], first_seen: NDArray[np.int64]) -> tuple[int, Tensor | None]:
    """``SharedGroup.first_key`` and ``unseen``; ``first_seen`` ``[num_nodes, num_padded]`` of its rows."""
    starts = np.array([[segment.start] for segment, _, _ in run])
    first = torch.from_numpy(first_seen - starts).clamp_(0, run[0][0].block.padded_tokens)
    first_key = int(first.min()) // SEGMENT_ALIGNMENT * SEGMENT_ALIGNMENT
    num_keys = int(first.max()) - first_key
    if not num_keys:
        return first_key, None
    return first_key, torch.arange(first_key, first_key + num_keys) < first.unsqueeze(2)


def _key_padding(run: list[SharedSlice]) -> Tensor | None:
    """``SharedGroup.padding`` of a run of slices."""
    used = [segment.num_tokens - segment.block.padded_tokens + SEGMENT_ALIGNMENT for segment, _, _ in run]
    if min(used) == SEGMENT_ALIGNMENT:
        return None
    return torch.arange(SEGMENT_ALIGNMENT).unsqueeze(0) >= torch.tensor(used).unsqueeze(1)


def _private_pages(layout: BatchLayout, first_seen: NDArray[np.int64] | None, pool: int) -> PrivatePages:
    size, num_live = layout.store.page_size, layout.store.pools[pool].num_live
    seen = list[tuple[int, int, int, int, int]]()  # page, row, age, first and last token that the row sees
    for row, row_id in zip(layout.decodes, layout.decode_rows.tolist(), strict=True):
        first = 0 if first_seen is None else max(int(first_seen[row_id]) - row.segment.end, 0)
        oldest, num_pages = first // size, row.num_private // size + 1
        for age, page in enumerate(row.pages.pages[pool][oldest:num_pages]):
            assert page is not None, "a page that a row sees was given back"
            before = (oldest + age) * size
            seen.append((page.index, row_id, age, first - before, row.num_private - before))
    is_sparse = first_seen is not None and len({index for index, *_ in seen}) < num_live
    num_pages = 0 if is_sparse else num_live
    bounds, owners = [(size, -1)] * num_pages, [-1] * num_pages
    repeated = list[int]()
    by_age: dict[int, list[tuple[int, int]]] = {}
    for index, row_id, age, first, last in seen:
        place = index
        if is_sparse or owners[index] >= 0:
            place = len(owners)
            repeated.append(index)
            owners.append(row_id)
            bounds.append((first, last))
        else:
            owners[place], bounds[place] = row_id, (first, last)
        by_age.setdefault(age, []).append((place, row_id))
    ordinals = tuple(
        (torch.tensor([place for place, _ in pairs]), torch.tensor([row for _, row in pairs]))
        for _, pairs in sorted(by_age.items())
    )
    token, (firsts, lasts) = torch.arange(size), torch.tensor(bounds).unsqueeze(2).unbind(1)
    unseen = (token < firsts) | (token > lasts)
    attending = torch.tensor(owners).clamp_(min=0)
    return PrivatePages(num_pages, torch.tensor(repeated, dtype=torch.int64), attending, unseen, ordinals)
