"""Shared segments: the immutable KV of tree nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False, slots=True)
class SegmentBlock:
    """Segments of one padded length, side by side, so that one batched matmul serves them all.

    Attributes:
        keys_t: Per layer ``[capacity, H, D, N]``: transposed keys.
        values: Per layer ``[capacity, H, N, E]``.
        occupants: The segment in each place, or None.
    """

    padded_tokens: int
    keys_t: list[Tensor]
    values: list[Tensor]
    occupants: list[Segment | None]

    @property
    def num_live(self) -> int:
        """Places that hold a segment."""
        return sum(occupant is not None for occupant in self.occupants)


@dataclass(eq=False, slots=True)
class Segment:
    """The KV of one tree node: written once, front to back, then immutable and shared.

    Attributes:
        start: Position of its first token in the prompt.
        num_tokens: Tokens of the node.
        num_written: Tokens whose KV has been computed.
        order: Depth-first rank; the rows of a step are sorted by it.
        parent: The segment above, or None.
        block: Where its KV lies.
        index: Its place in ``block``.
        num_users: Reference count; at zero the segment is freed.
    """

    start: int
    num_tokens: int
    order: int
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

    def values(self, layer: int, head_dim: int) -> Tensor:
        """Its values ``[num_tokens, H, D]`` (a view); those from ``num_written`` on are zero."""
        return self.block.values[layer][self.index, :, : self.num_tokens, :head_dim].transpose(0, 1)
