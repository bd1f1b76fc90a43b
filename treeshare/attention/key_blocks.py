"""Keys in blocks at fixed positions of the prompt, so that sums do not depend on how the tree is divided.

A prompt's keys are walked in blocks that begin at multiples of ``KEY_BLOCK``. A block that is cut by a node's
border belongs to the slice of the node that holds its last key, and takes its keys from two or more segments.
A node's unfinished last block belongs to its children, and to rows whose prompt ends there. So a row meets
the same blocks in the same order, alone or with other rows; a kernel that carries its running result from
block to block gives it the same bits. Generated tokens need none of this: their pages begin at the prompt's
end.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from treeshare.native.structs import KEY_BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from treeshare.attention.layout import BatchLayout, CausalChunk, SharedSlice
    from treeshare.kv import Segment


class Piece(NamedTuple):
    """Tokens ``[first_token, last_token)`` of a segment."""

    segment: Segment
    first_token: int
    last_token: int


@dataclass(frozen=True, slots=True)
class BlockSlice:
    """Rows ``[first_row, last_row)`` and whole blocks of keys, the last of which may be unfinished.

    Attributes:
        first_row, last_row: The rows.
        pieces: The keys in their order, from the start of a block.
        first_own_token: For a prefill chunk, whose rows are tokens of the last piece and see none after their
            own: the place in that piece of the first row's token. None if rows see all keys.
    """

    first_row: int
    last_row: int
    pieces: tuple[Piece, ...]
    first_own_token: int | None = None

    @property
    def first_position(self) -> int:
        """The position of the first key in its prompt."""
        segment, first, _ = self.pieces[0]
        return segment.start + first

    @property
    def num_keys(self) -> int:
        """Keys of all pieces."""
        return sum(last - first for _, first, last in self.pieces)


def block_slices(layout: BatchLayout) -> list[BlockSlice]:
    """The slices of a layout as whole blocks.

    Returns:
        In the order in which a row meets them: whole blocks, root first, then the unfinished one at its
        prompt's end; for a prefill chunk, those that end above its segment, then those that hold it.
    """
    decode_rows = layout.decode_rows.tolist()
    found = [part for shared in layout.slices for part in _shared(layout, shared, decode_rows)]
    return found + [_causal(chunk) for chunk in layout.causal]


def _shared(layout: BatchLayout, shared: SharedSlice, decode_rows: list[int]) -> Iterator[BlockSlice]:
    """The blocks that end in a slice's segment; the unfinished one for rows whose prompt ends with it."""
    segment, first_row, last_row = shared
    begin, border = _block_start(segment.start), _block_start(segment.end)
    if begin < border:
        yield BlockSlice(first_row, last_row, pieces(segment, begin, border))
    if border < segment.end:
        first = bisect_left(decode_rows, first_row)
        last = first
        while (
            last < len(decode_rows)
            and decode_rows[last] < last_row
            and layout.decodes[last].segment is segment
        ):
            last += 1
        if first < last:
            rows = decode_rows[first:last]
            assert rows[-1] - rows[0] == last - 1 - first, "rows of one segment are packed side by side"
            yield BlockSlice(rows[0], rows[-1] + 1, pieces(segment, border, segment.end))


def _causal(chunk: CausalChunk) -> BlockSlice:
    """The blocks that hold a chunk's segment, up to the chunk's last token."""
    segment = chunk.segment
    parts = pieces(segment, _block_start(segment.start), segment.start + chunk.end)
    return BlockSlice(chunk.first_row, chunk.last_row, parts, chunk.start)


def pieces(segment: Segment, start: int, end: int) -> tuple[Piece, ...]:
    """Positions ``[start, end)`` of the prompts below ``segment``, which ends at ``end`` or later."""
    found: list[Piece] = []
    part: Segment | None = segment
    while part is not None and start < end:
        if part.start < end:
            found.append(Piece(part, max(start - part.start, 0), end - part.start))
            end = max(part.start, start)
        part = part.parent
    return tuple(reversed(found))


def _block_start(position: int) -> int:
    return position - position % KEY_BLOCK
