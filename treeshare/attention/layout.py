"""The plan of one step: which packed rows attend to which KV. Made once a step, used by every layer.

Rows are packed depth-first, so the rows below a tree node are one slice. A prefill chunk's own tokens come
before everything below its node. What a row attends to, in the fixed order in which its partial results are
merged:

1. the segments above it, root first (``SharedSlice``: dense, no mask);
2. a prefill token: its own segment up to itself (``CausalChunk``); a decoding row: its private pages, oldest
   first (``DecodeRow``).

Nothing here depends on what else is in the batch except how many rows a matmul has; ``tests/engine`` holds
that a row's result is the same bits in any batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treeshare.config import Sharing
from treeshare.kv import KVStore, Order, PageTable, Segment, page_index


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens ``[start, end)`` of a segment, to be computed in this step."""

    segment: Segment
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One sequence's next token: it follows ``num_private`` private tokens below ``segment``.

    ``pages`` already have room for that token.
    """

    segment: Segment
    pages: PageTable
    num_private: int


class SharedSlice(NamedTuple):
    """Rows ``[first_row, last_row)`` attend to all tokens of ``segment``."""

    segment: Segment
    first_row: int
    last_row: int


@dataclass(frozen=True, slots=True)
class CausalChunk:
    """Rows ``[first_row, last_row)`` are tokens ``[start, end)`` of ``segment``, and see none after them."""

    segment: Segment
    start: int
    end: int
    first_row: int
    last_row: int


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """The plan of one step over ``num_rows`` packed rows.

    Attributes:
        store: The KV that the step reads and extends.
        num_rows: Packed rows that carry a token.
        slices: Each segment and the rows below it; parents first.
        causal: The prefill chunks.
        decodes: The decoding rows, in packing order.
        decode_rows: ``[num_decode]`` int64: the packed row of each.
        write_pages: ``[num_decode]`` int64 of each of the store's pools: the page that its token goes to.
        write_offsets: ``[num_decode]`` int64: the place in that page.
        positions: ``[num_rows]`` int64 position of each row's token in its sequence.
    """

    store: KVStore
    num_rows: int
    slices: tuple[SharedSlice, ...]
    causal: tuple[CausalChunk, ...]
    decodes: tuple[DecodeRow, ...]
    decode_rows: Tensor
    write_pages: tuple[Tensor, ...]
    write_offsets: Tensor
    positions: Tensor

    def write(self, layer: int, keys: Tensor | None, values: Tensor | None) -> None:
        """Store the step's ``keys`` ``[>= num_rows, H, D]`` and ``values`` for this and later steps.

        None: an earlier call has stored them.
        """
        if keys is None or values is None:
            return
        for chunk in self.causal:
            rows = slice(chunk.first_row, chunk.last_row)
            self.store.segments.write(layer, chunk.segment, chunk.start, keys[rows], values[rows])
        if len(self.decode_rows):
            pool = self.store.pool_number(layer)
            self.store.pools[pool].write(
                layer,
                self.write_pages[pool],
                self.write_offsets,
                keys.index_select(0, self.decode_rows),
                values.index_select(0, self.decode_rows),
            )


def seen_slices(
    slices: Sequence[SharedSlice], first_seen: NDArray[np.int64] | None
) -> tuple[SharedSlice, ...]:
    """Each slice from the first to the last of its rows that sees a key of the segment.

    Args:
        slices: Of a layout.
        first_seen: ``[num_rows]`` position of the first key that each row sees; None: rows see all keys.

    Returns:
        The slices without those that no row sees. Rows between two that see a key may see none.
    """
    if first_seen is None:
        return tuple(slices)
    found = []
    for segment, first, last in slices:
        seeing = np.flatnonzero(first_seen[first:last] < segment.end)
        if len(seeing):
            found.append(SharedSlice(segment, first + int(seeing[0]), first + int(seeing[-1]) + 1))
    return tuple(found)


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
    slices: dict[tuple[Segment, int], list[int]] = {}  # by segment and key, see _extend_slices
    causal: list[CausalChunk] = []
    decode_rows: list[int] = []
    positions: list[int] = []
    for item, count in _packing_order(chunks, rows):
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
            slices, above, first, len(positions), sharing=sharing, is_chunk=isinstance(item, PrefillChunk)
        )
    size = store.page_size
    return BatchLayout(
        store=store,
        num_rows=len(positions),
        slices=tuple(SharedSlice(segment, first, last) for (segment, _), (first, last) in slices.items()),
        causal=tuple(causal),
        decodes=tuple(rows),
        decode_rows=torch.tensor(decode_rows, dtype=torch.int64),
        write_pages=tuple(
            torch.tensor(
                [page_index(row.pages.pages[pool][row.num_private // size]) for row in rows],
                dtype=torch.int64,
            )
            for pool in range(len(store.pools))
        ),
        write_offsets=torch.tensor([row.num_private % size for row in rows], dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
    )


def _packing_order(
    chunks: Sequence[PrefillChunk], rows: Sequence[DecodeRow]
) -> list[tuple[PrefillChunk | list[DecodeRow], int]]:
    """Chunks and runs of rows below one segment, in packing order, each with its number of rows."""
    items: list[tuple[Order, int, PrefillChunk | list[DecodeRow], int]] = [
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
    is_chunk: bool,
) -> None:
    """Add rows ``[first, last)`` to the slice of each segment ``above``.

    A segment that all rows share has one slice, by the key -1; another has a slice for each chunk and each
    decoding row, by the first row.
    """
    for segment in above:
        is_shared = sharing == "tree" or (sharing == "one-level" and not segment.order)
        if not is_shared and not is_chunk:
            slices.update({(segment, row): [row, row + 1] for row in range(first, last)})
            continue
        bounds = slices.setdefault((segment, -1 if is_shared else first), [first, first])
        assert bounds[1] == first, "rows are packed depth-first"
        bounds[1] = last
