"""Shared segments: the KV of tree nodes, written once.

Shapes: ``H`` KV heads, ``D`` width of a key, ``V`` of a value, ``E`` extended width of a value row, ``N``
padded tokens of a segment; all but the last are a layer's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from treeshare.config import SEGMENT_ALIGNMENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from treeshare.kv.memory import KVGeometry, KVMemory


Order = int | tuple[int, ...]
"""Places depth-first; a store's are all numbers, or all tuples, between which later ones find room."""


def padded_length(num_tokens: int) -> int:
    """Tokens that a segment of ``num_tokens`` occupies."""
    return -(-num_tokens // SEGMENT_ALIGNMENT) * SEGMENT_ALIGNMENT


@dataclass(eq=False, slots=True)
class SegmentBlock:
    """Segments of one padded length, side by side, so that one batched matmul serves them all.

    Attributes:
        geometry: Shape and dtype of one token's KV.
        padded_tokens: ``N``.
        keys_t: Per layer ``[capacity, H, D, N]``: transposed keys.
        values: Per layer ``[capacity, H, N, E]``.
        occupants: The segment in each place, or None.
    """

    geometry: KVGeometry
    padded_tokens: int
    keys_t: list[Tensor]
    values: list[Tensor]
    occupants: list[Segment | None]

    @property
    def num_live(self) -> int:
        """Places that hold a segment."""
        return sum(occupant is not None for occupant in self.occupants)

    def discard(self) -> None:
        """Let go of its memory, whoever still refers to it."""
        self.keys_t.clear()
        self.values.clear()


@dataclass(eq=False, slots=True)
class Segment:
    """The KV of one tree node: written once, front to back, then immutable and shared.

    Attributes:
        start: Position of its first token in the prompt.
        num_tokens: Tokens of the node.
        num_written: Tokens whose KV has been computed.
        order: Its place depth-first, by which the rows of a step are sorted: 0 or empty if it is above all
            others.
        parent: The segment above, or None.
        block: Where its KV lies.
        index: Its place in ``block``.
        num_users: Reference count; at zero the segment is freed.
    """

    start: int
    num_tokens: int
    order: Order
    parent: Segment | None
    block: SegmentBlock
    index: int
    num_written: int = 0
    num_users: int = 1

    @property
    def end(self) -> int:
        """Position after its last token."""
        return self.start + self.num_tokens

    def path(self) -> tuple[Segment, ...]:
        """The segments from the root down to this one."""
        path: list[Segment] = []
        segment: Segment | None = self
        while segment is not None:
            path.append(segment)
            segment = segment.parent
        return tuple(reversed(path))

    def keys(self, layer: int) -> Tensor:
        """Its keys ``[num_tokens, H, D]`` (a view); those from ``num_written`` on hold anything."""
        return self.block.keys_t[layer][self.index, :, :, : self.num_tokens].permute(2, 0, 1)

    def values(self, layer: int) -> Tensor:
        """Its values ``[num_tokens, H, V]`` (a view); those from ``num_written`` on are zero."""
        width = self.block.geometry.layers[layer].value_width
        return self.block.values[layer][self.index, :, : self.num_tokens, :width].transpose(0, 1)


class SegmentStore:
    """All segments, in blocks of one padded length.

    Args:
        memory: Allocates the tensors.
        charge: Called with the bytes of new places before they are made; raises if the budget lacks them.

    Attributes:
        loose_bytes: Bytes freed since the store last set this to 0; the process may hold them still.
    """

    def __init__(self, memory: KVMemory, charge: Callable[[int], None]) -> None:
        self._memory, self._charge = memory, charge
        self._blocks: dict[SegmentBlock, None] = {}
        self._with_free_place: dict[int, dict[SegmentBlock, None]] = {}  # by padded length
        self._num_tokens = 0
        self.loose_bytes = 0

    @property
    def bytes_in_use(self) -> int:
        """Bytes of all blocks; empty places count, they occupy memory."""
        return self._num_tokens * self._memory.geometry.bytes_per_token

    @property
    def num_live(self) -> int:
        """Segments held."""
        return sum(block.num_live for block in self._blocks)

    def bytes_of(self, num_tokens: int) -> int:
        """Bytes that a segment of ``num_tokens`` occupies."""
        return padded_length(num_tokens) * self._memory.geometry.bytes_per_token

    def reserve(self, num_tokens: int, count: int) -> None:
        """Make sure that ``count`` segments of ``num_tokens`` find a place; new places lie side by side.

        Raises:
            BudgetError: If the budget does not hold the new places; nothing was reserved.
        """
        blocks = self._with_free_place.get(padded_length(num_tokens), ())
        free = sum(block.occupants.count(None) for block in blocks)
        if free < count:
            self._new_block(num_tokens, count - free)

    def new(self, *, start: int, num_tokens: int, order: Order, parent: Segment | None) -> Segment:
        """A segment with one user, in a free place or in a block of its own; retains ``parent``.

        Raises:
            BudgetError: If there is no free place and the budget does not hold one more.
        """
        blocks = self._with_free_place.get(padded_length(num_tokens))
        block = next(iter(blocks)) if blocks else self._new_block(num_tokens, 1)
        index = block.occupants.index(None)
        segment = Segment(start, num_tokens, order, parent, block, index)
        block.occupants[index] = segment
        if None not in block.occupants:
            self._drop_from_free(block)
        if parent is not None:
            parent.num_users += 1
        return segment

    def release(self, segment: Segment | None) -> None:
        """Drop a user; a segment without users is freed and releases its parent, and so on up the path."""
        while segment is not None:
            segment.num_users -= 1
            if segment.num_users:
                return
            block = segment.block
            block.occupants[segment.index] = None
            self._with_free_place.setdefault(block.padded_tokens, {})[block] = None
            if block.num_live:
                for values in block.values:
                    values[segment.index].zero_()
            else:
                self._drop_from_free(block)
                num_tokens = block.padded_tokens * len(block.occupants)
                self._num_tokens -= num_tokens
                self.loose_bytes += num_tokens * self._memory.geometry.bytes_per_token
                del self._blocks[block]
                block.discard()
            segment = segment.parent

    def compact(self) -> None:
        """Free the empty places of all blocks by moving the live segments, whose bits stay the same."""
        for block in [block for blocks in self._with_free_place.values() for block in blocks]:
            live = [segment for segment in block.occupants if segment is not None]
            self._drop_from_free(block)
            self._num_tokens -= block.padded_tokens * (len(block.occupants) - len(live))
            places = torch.tensor([segment.index for segment in live], device=self._memory.device)
            for tensors in (block.keys_t, block.values):
                for layer, tensor in enumerate(tensors):
                    tensors[layer] = self._memory.keep_rows(tensor, places)
            block.occupants[:] = live
            for index, segment in enumerate(live):
                segment.index = index

    def write(self, layer: int, segment: Segment, offset: int, keys: Tensor, values: Tensor) -> None:
        """Store ``keys`` ``[n, H, D]`` and ``values`` ``[n, H, V]`` from the segment's token ``offset``."""
        end, width = offset + keys.shape[0], values.shape[2]
        segment.block.keys_t[layer][segment.index, :, :, offset:end] = keys.permute(1, 2, 0)
        place = segment.block.values[layer][segment.index, :, offset:end]
        place[:, :, :width] = values.transpose(0, 1)
        place[:, :, width] = 1

    def copy_tokens(self, source: Segment, target: Segment, num_tokens: int) -> None:
        """Copy those of the first ``num_tokens`` of ``source`` that ``target`` has not written yet."""
        start, count = target.num_written, num_tokens - target.num_written
        assert num_tokens <= min(source.num_written, target.num_tokens)
        for layer in range(self._memory.geometry.num_layers):
            for tensors, axis in (("keys_t", 2), ("values", 1)):
                kept = getattr(source.block, tensors)[layer][source.index].narrow(axis, start, count)
                place = getattr(target.block, tensors)[layer][target.index]
                place.narrow(axis, start, count).copy_(kept)
        target.num_written = num_tokens

    def discard(self) -> None:
        """Let go of all memory, whoever still holds a segment; the store cannot be used any more."""
        for block in self._blocks:
            block.discard()

    def check_invariants(self) -> None:
        """Assert that counts and places agree."""
        live = [segment for block in self._blocks for segment in block.occupants if segment is not None]
        for block in self._blocks:
            assert block.num_live, "an empty block is still held"
            is_listed = block in self._with_free_place.get(block.padded_tokens, ())
            assert is_listed == (None in block.occupants), "a free place is not listed, or none is free"
        places = sum(block.padded_tokens * len(block.occupants) for block in self._blocks)
        assert self._num_tokens == places, "blocks are counted wrong"
        for segment in live:
            assert segment.block.occupants[segment.index] is segment, "a segment is not where it says"
            assert 0 <= segment.num_written <= segment.num_tokens <= segment.block.padded_tokens
            children = sum(other.parent is segment for other in live)
            assert segment.num_users >= max(children, 1), "a live segment has too few users"
            assert segment.parent is None or segment.parent in live, "a parent was freed before its child"

    def check_empty(self) -> None:
        """Assert that nothing is left allocated."""
        assert not self._blocks, "segments left allocated"

    def _new_block(self, num_tokens: int, capacity: int) -> SegmentBlock:
        """Places for ``capacity`` segments of ``num_tokens`` each, charged to the budget at once."""
        self._charge(self.bytes_of(num_tokens) * capacity)
        geometry, tokens = self._memory.geometry, padded_length(num_tokens)
        shapes = [
            shape
            for layer in geometry.layers
            for shape in (
                (capacity, layer.num_heads, layer.key_width, tokens),
                (capacity, layer.num_heads, tokens, layer.stored_width),
            )
        ]
        tensors = self._memory.allocate_together(shapes)
        keys_t, values = tensors[::2], [tensor.zero_() for tensor in tensors[1::2]]
        block = SegmentBlock(geometry, tokens, keys_t, values, [None] * capacity)
        self._blocks[block] = None
        self._num_tokens += tokens * capacity
        self._with_free_place.setdefault(tokens, {})[block] = None
        return block

    def _drop_from_free(self, block: SegmentBlock) -> None:
        """Take a block off the list of those with a free place."""
        blocks = self._with_free_place[block.padded_tokens]
        del blocks[block]
        if not blocks:
            del self._with_free_place[block.padded_tokens]
