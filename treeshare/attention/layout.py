"""The plan of one step: which packed rows attend to which KV. Made once a step, used by every layer.

Rows are packed depth-first, so the rows below a tree node are one slice. A prefill chunk's own tokens come
before everything below its node. What a row attends to, in the fixed order in which its partial results are
merged:

1. the segments above it, root first (``SharedGroup``: dense, no mask but for padded keys);
2. a prefill token: its own segment up to itself (``CausalChunk``); a decoding row: its private pages, oldest
   first (``PrivatePages``).

Nothing here depends on what else is in the batch except how many rows a matmul has; ``tests/engine`` holds
that a row's result is the same bits in any company.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from treeshare.config import Sharing
from treeshare.kv import KVStore, Page, Segment, SegmentBlock
from treeshare.kv.store import SEGMENT_ALIGNMENT

MIN_QUERIES = 16
"""Fewest query rows of a matmul: below, libraries switch to kernels that sum in another order."""

MAX_PADDING = 2.0
"""Nodes share a batched matmul while padding to the largest slice at most doubles the work."""


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens ``[start, end)`` of a segment, to be computed in this step."""

    segment: Segment
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One sequence's next token: it follows ``num_private`` private tokens below ``segment``.

    ``pages`` already has room for it.
    """

    segment: Segment
    pages: Sequence[Page]
    num_private: int


@dataclass(frozen=True, slots=True)
class SharedGroup:
    """Neighbouring segments of one block, each with the slice of rows below it, padded to one size.

    Attributes:
        block: Where their KV lies, at places ``[first, last)``.
        rows: ``[num_nodes, num_padded]`` int64 row of each query; or a slice when the rows are contiguous and
            need no padding, so that no gather is needed.
        num_padded: Queries per node.
        valid: ``[num_valid]`` int64: which of the flattened ``rows`` are real; None when all are.
        padding: ``[num_nodes, SEGMENT_ALIGNMENT]`` bool: padded keys among the last ones; None when there are
            none.
    """

    block: SegmentBlock
    first: int
    last: int
    rows: Tensor | slice
    num_padded: int
    valid: Tensor | None
    padding: Tensor | None


@dataclass(frozen=True, slots=True)
class CausalChunk:
    """Rows ``[first_row, last_row)`` are tokens ``[start, end)`` of ``segment``; each sees its past."""

    segment: Segment
    start: int
    end: int
    first_row: int
    last_row: int


@dataclass(frozen=True, slots=True)
class PrivatePages:
    """All live private pages and the rows that attend to them.

    Place ``i < P`` is page ``i`` for the first of its rows; ``X`` further places are for the other rows of
    pages that several sequences share.

    Attributes:
        num_pages: ``P``, pages ``[0, P)`` of the pool.
        again: ``[X]`` int64: the page of each further place.
        rows: ``[P + X]`` int64: the row that attends at each place.
        unwritten: ``[P + X, page_size]`` bool: keys that hold no token.
        ordinals: For each age of a page, oldest first: the places and their rows, int64.
    """

    num_pages: int
    again: Tensor
    rows: Tensor
    unwritten: Tensor
    ordinals: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class BatchLayout:
    """The plan of one step over ``num_rows`` packed rows.

    Attributes:
        store: The KV that the step reads and extends.
        num_rows: Packed rows that carry a token.
        slices: Each segment, its first row and the row after its last one: those below it; parents first.
        causal: The prefill chunks.
        decodes: The decoding rows, in packing order.
        decode_rows: ``[num_decode]`` int64: the packed row of each.
        write_pages: ``[num_decode]`` int64: the page that its token goes to.
        write_offsets: ``[num_decode]`` int64: the place in that page.
        positions: ``[num_rows]`` int64 position of each row's token in its sequence.
    """

    store: KVStore
    num_rows: int
    slices: tuple[tuple[Segment, int, int], ...]
    causal: tuple[CausalChunk, ...]
    decodes: tuple[DecodeRow, ...]
    decode_rows: Tensor
    write_pages: Tensor
    write_offsets: Tensor
    positions: Tensor

    @cached_property
    def shared(self) -> tuple[SharedGroup, ...]:
        """The slices as batched matmuls, root first."""
        return _shared_groups(self.slices)

    @cached_property
    def private(self) -> PrivatePages | None:
        """The decoding rows' pages as one batched matmul; None where none decodes."""
        if not self.decodes:
            return None
        return _private_pages(self.store, self.decodes, self.decode_rows.tolist())

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store the step's ``keys`` and ``values``, ``[>= num_rows, H, D]``, for this and later steps."""
        for chunk in self.causal:
            rows = slice(chunk.first_row, chunk.last_row)
            self.store.write_segment(layer, chunk.segment, chunk.start, keys[rows], values[rows])
        if len(self.decode_rows):
            self.store.write_rows(
                layer,
                self.write_pages,
                self.write_offsets,
                keys.index_select(0, self.decode_rows),
                values.index_select(0, self.decode_rows),
            )


def depth_first(
    chunks: Sequence[PrefillChunk], rows: Sequence[DecodeRow]
) -> tuple[list[PrefillChunk], list[int]]:
    """The order of packing: chunks sorted, and the permutation that sorts ``rows``; both stable."""
    sorted_chunks = sorted(chunks, key=lambda chunk: (chunk.segment.order, chunk.start))
    return sorted_chunks, sorted(range(len(rows)), key=lambda index: rows[index].segment.order)


def build_layout(
    store: KVStore, chunks: Sequence[PrefillChunk], rows: Sequence[DecodeRow], *, sharing: Sharing = "tree"
) -> BatchLayout:
    """Plan a step.

    Args:
        store: The KV store; not mutated.
        chunks: Prefill chunks sorted depth-first; a segment's parents are written, or come before it in
            ``chunks``.
        rows: Decoding rows sorted depth-first.
        sharing: Which segments decoding rows attend to together: all of the tree's, only the common root's
            (``one-level``), or ``none``: each row by itself. For measuring what sharing brings.

    Returns:
        The layout; packed rows are chunks and decoding rows merged depth-first, a chunk before the rows of
        its segment.
    """
    slices: dict[tuple[Segment, int], list[int]] = {}
    causal: list[CausalChunk] = []
    decode_rows: list[int] = []
    positions: list[int] = []
    for item, count in _merge(chunks, rows):
        first = len(positions)
        if isinstance(item, PrefillChunk):
            segment = item.segment
            positions.extend(range(segment.start + item.start, segment.start + item.end))
            causal.append(CausalChunk(segment, item.start, item.end, first, len(positions)))
            above = segment.path()[:-1]
        else:
            above = item[0].segment.path()
            positions.extend(row.segment.end + row.num_private for row in item)
            decode_rows.extend(range(first, first + count))
        _extend_slices(
            slices,
            above,
            first,
            len(positions),
            sharing="tree" if isinstance(item, PrefillChunk) else sharing,
        )
    size = store.page_size
    return BatchLayout(
        store=store,
        num_rows=len(positions),
        slices=tuple((segment, first, last) for (segment, _), (first, last) in slices.items()),
        causal=tuple(causal),
        decodes=tuple(rows),
        decode_rows=torch.tensor(decode_rows, dtype=torch.int64),
        write_pages=torch.tensor(
            [row.pages[row.num_private // size].index for row in rows], dtype=torch.int64
        ),
        write_offsets=torch.tensor([row.num_private % size for row in rows], dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
    )


def _merge(
    chunks: Sequence[PrefillChunk], rows: Sequence[DecodeRow]
) -> list[tuple[PrefillChunk | list[DecodeRow], int]]:
    """Chunks and runs of rows below one segment, in packing order, each with its number of rows."""
    items: list[tuple[int, int, PrefillChunk | list[DecodeRow], int]] = [
        (chunk.segment.order, 0, chunk, chunk.end - chunk.start) for chunk in chunks
    ]
    for order, run in groupby(rows, key=lambda row: row.segment.order):
        members = list(run)
        items.append((order, 1, members, len(members)))
    items.sort(key=lambda item: item[:2])
    return [(item, count) for _, _, item, count in items]


def _extend_slices(
    slices: dict[tuple[Segment, int], list[int]],
    above: Sequence[Segment],
    first: int,
    last: int,
    *,
    sharing: Sharing,
) -> None:
    """Add rows ``[first, last)`` to the slice of each segment ``above``; one slice a row where not shared."""
    for segment in above:
        if sharing == "none" or (sharing == "one-level" and segment.order):
            slices.update({(segment, row): [row, row + 1] for row in range(first, last)})
            continue
        bounds = slices.setdefault((segment, -1), [first, first])
        assert bounds[1] == first, "rows are packed depth-first"
        bounds[1] = last


Slice = tuple[Segment, int, int]


def _shared_groups(slices: Sequence[Slice]) -> tuple[SharedGroup, ...]:
    """Batch the slices of equal-sized neighbouring segments of one level; a segment's own one by one."""
    levels: dict[tuple[int, int, int], list[Slice]] = {}
    num_slices = Counter[Segment]()
    for segment, first, last in slices:
        key = (len(segment.path()), id(segment.block), num_slices[segment])
        levels.setdefault(key, []).append((segment, first, last))
        num_slices[segment] += 1
    groups: list[SharedGroup] = []
    for _, members in sorted(levels.items(), key=lambda item: item[0][0]):
        members.sort(key=lambda member: member[0].index)
        run: list[Slice] = []
        for member in members:
            if run and not _fits(run, member):
                groups.append(_shared_group(run))
                run = []
            run.append(member)
        groups.append(_shared_group(run))
    return tuple(groups)


def _fits(run: list[Slice], member: Slice) -> bool:
    """Whether ``member`` may join the batched matmul of ``run``."""
    if member[0].index != run[-1][0].index + 1:
        return False
    counts = [last - first for _, first, last in [*run, member]]
    return max(counts) * len(counts) <= MAX_PADDING * sum(counts)


def _shared_group(run: list[Slice]) -> SharedGroup:
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


def _key_padding(run: list[Slice]) -> Tensor | None:
    used = [segment.num_tokens - segment.block.padded_tokens + SEGMENT_ALIGNMENT for segment, _, _ in run]
    if min(used) == SEGMENT_ALIGNMENT:
        return None
    return torch.arange(SEGMENT_ALIGNMENT).unsqueeze(0) >= torch.tensor(used).unsqueeze(1)


def _private_pages(store: KVStore, rows: Sequence[DecodeRow], row_ids: Sequence[int]) -> PrivatePages:
    size, num_pages = store.page_size, store.pool.num_live
    owners, used, again = [-1] * num_pages, [0] * num_pages, list[int]()
    ages: dict[int, list[tuple[int, int]]] = {}
    for row, row_id in zip(rows, row_ids, strict=True):
        for age, page in enumerate(row.pages[: row.num_private // size + 1]):
            place, num_used = page.index, min(row.num_private + 1 - age * size, size)
            if owners[place] < 0:
                owners[place], used[place] = row_id, num_used
            else:
                place = len(owners)
                again.append(page.index)
                owners.append(row_id)
                used.append(num_used)
            ages.setdefault(age, []).append((place, row_id))
    ordinals = tuple(
        (torch.tensor([place for place, _ in ages[age]]), torch.tensor([row for _, row in ages[age]]))
        for age in sorted(ages)
    )
    unwritten = torch.arange(size).unsqueeze(0) >= torch.tensor(used).unsqueeze(1)
    attending = torch.tensor(owners).clamp_(min=0)
    return PrivatePages(num_pages, torch.tensor(again, dtype=torch.int64), attending, unwritten, ordinals)
