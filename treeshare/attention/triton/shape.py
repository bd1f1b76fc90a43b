"""How the work of the Triton kernels is divided, by what they are compiled for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from treeshare.attention.api import AttentionSpec
    from treeshare.kv import LayerKV

CHUNK = 512
"""Keys of a node that one online softmax covers before it is merged with the rest; work is cut there."""


def is_interpreted() -> bool:
    """Whether ``TRITON_INTERPRET=1``: kernels run on the CPU, slowly, to be tested."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class TileShape(NamedTuple):
    """How a kernel's work is cut; a function of widths, dtype and group size only.

    Attributes:
        rows: Stacked query rows of a program: ``BLOCK_M``.
        keys: Keys of a block: ``BLOCK_N``.
        num_warps: Warps of a program.
        num_stages: Blocks of keys being loaded at once.
        max_registers: Maximum number of registers of a thread; None leaves it to the assembler, which spills
            some where it hopes for more programs.
    """

    rows: int
    keys: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None


SLICE_TILES = {
    2: {64: TileShape(64, 64, 4, 3), 128: TileShape(64, 64, 8, 3), 256: TileShape(32, 64, 8, 2)},
    4: {
        64: TileShape(32, 32, 4, 2, 128),
        128: TileShape(32, 16, 8, 2, 128),
        256: TileShape(16, 32, 8, 2, 160),
    },
}
"""Tiles of ``attend_slices`` by bytes of an element and the larger padded width: the largest that spill no
register (docs/bench/triton_kernels.md). Float32 has no tensor cores, which would round it."""

PAGE_TILES = {
    2: {64: TileShape(16, 64, 4, 2, 128), 128: TileShape(16, 64, 4, 2), 256: TileShape(16, 64, 4, 2)},
    4: {
        64: TileShape(16, 32, 4, 2, 128),
        128: TileShape(16, 32, 8, 2, 128),
        256: TileShape(16, 32, 8, 2, 128),
    },
}
"""Tiles of ``attend_pages``, likewise; short pages and many query heads of a KV head change them."""

MASKED_SLICE_TILES = {(4, 128): TileShape(32, 32, 8, 2)}
MASKED_PAGE_TILES = {(4, 256): TileShape(16, 32, 8, 2, 160)}
"""In their place, by the same two numbers, where a window or a soft cap would make a kernel spill registers.
Keys of 80 and 96 still spill up to 32 bytes on sm_80. The rows, by which tables are made, are the same."""


@dataclass(frozen=True, kw_only=True)
class KernelShape:
    """What the kernels are compiled for: layers of one shape, a dtype, a page size.

    Attributes:
        layer: Shape of the layers' KV.
        dtype: Of its numbers.
        group_size: Query heads of each KV head.
        page_size: Tokens of a page; a multiple of 16.
    """

    layer: LayerKV
    dtype: torch.dtype
    group_size: int
    page_size: int

    @property
    def num_kv_heads(self) -> int:
        """KV heads."""
        return self.layer.num_heads

    @property
    def num_q_heads(self) -> int:
        """Query heads."""
        return self.num_kv_heads * self.group_size

    @property
    def key_block(self) -> int:
        """The width of keys up to a power of two: ``BLOCK_D``."""
        return _power_of_two(self.layer.key_width)

    @property
    def value_block(self) -> int:
        """The width of values up to a power of two: ``BLOCK_V``."""
        return _power_of_two(self.layer.value_width)

    @property
    def slice_tile(self) -> TileShape:
        """The tile of ``attend_slices``."""
        return SLICE_TILES[self.dtype.itemsize][self._tile_width]

    @property
    def page_tile(self) -> TileShape:
        """The tile of ``attend_pages``: the query heads of a KV head, and keys of one page."""
        return self._of_pages(PAGE_TILES[self.dtype.itemsize][self._tile_width])

    def _of_pages(self, tile: TileShape) -> TileShape:
        keys = min(self.page_size & -self.page_size, tile.keys)
        return tile._replace(rows=_power_of_two(self.group_size), keys=keys)

    @property
    def chunk(self) -> int:
        """Keys of a chunk of a shared segment."""
        return CHUNK

    @property
    def page_chunk(self) -> int:
        """Tokens of a chunk of private pages: whole pages, about ``CHUNK``."""
        return max(CHUNK // self.page_size, 1) * self.page_size

    @property
    def _tile_width(self) -> int:
        return max(self.key_block, self.value_block, 64)

    def store_tokens(self) -> dict[str, Any]:
        """Compile-time constants of ``store_tokens``."""
        return {
            "BLOCK_H": 1 << (self.num_kv_heads - 1).bit_length(),
            **self._widths(),
            "NUM_KV_HEADS": self.num_kv_heads,
            "enable_fp_fusion": False,
        }

    def attend_slices(self, spec: AttentionSpec, *, causal: bool) -> dict[str, Any]:
        """Compile-time constants of ``attend_slices``."""
        tile = self.slice_tile
        if _is_masked(spec):
            tile = MASKED_SLICE_TILES.get((self.dtype.itemsize, self._tile_width), tile)
        return {"CAUSAL": causal, "CHUNK": self.chunk, **self._attend(tile, spec)}

    def attend_pages(self, spec: AttentionSpec) -> dict[str, Any]:
        """Compile-time constants of ``attend_pages``."""
        tile = self.page_tile
        if _is_masked(spec):
            other = MASKED_PAGE_TILES.get((self.dtype.itemsize, self._tile_width))
            tile = self._of_pages(other) if other else tile
        return {"PAGE_SIZE": self.page_size, "CHUNK": self.page_chunk, **self._attend(tile, spec)}

    def merge_states(self, spec: AttentionSpec) -> dict[str, Any]:
        """Compile-time constants of ``merge_states``."""
        return {
            "NUM_Q_HEADS": self.num_q_heads,
            "GROUP": self.group_size,
            "VALUE_WIDTH": self.layer.value_width,
            "HAS_SINKS": spec.has_sinks,
            "BLOCK_M": 1 << (self.group_size - 1).bit_length(),
            "BLOCK_V": self.value_block,
            "INTERPRETED": is_interpreted(),
            "enable_fp_fusion": False,
        }

    def _attend(self, tile: TileShape, spec: AttentionSpec) -> dict[str, Any]:
        """Compile-time constants that both attention kernels have."""
        return {
            "NUM_KV_HEADS": self.num_kv_heads,
            "GROUP": self.group_size,
            **self._widths(),
            "WINDOWED": has_window(spec),
            "CAPPED": spec.soft_cap is not None,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.keys,
            "INTERPRETED": is_interpreted(),
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
            "maxnreg": tile.max_registers,
            "enable_fp_fusion": False,  # what the compiler fuses could differ from kernel to kernel
        }

    def _widths(self) -> dict[str, int]:
        return {
            "KEY_WIDTH": self.layer.key_width,
            "VALUE_WIDTH": self.layer.value_width,
            "STORED_WIDTH": self.layer.stored_width,
            "BLOCK_D": self.key_block,
            "BLOCK_V": self.value_block,
        }


def has_window(spec: AttentionSpec) -> bool:
    """Whether rows do not see all that comes before them."""
    return spec.window is not None or spec.chunk is not None


def _is_masked(spec: AttentionSpec) -> bool:
    """Whether more than the products of queries and keys make a layer's scores."""
    return has_window(spec) or spec.soft_cap is not None


def _power_of_two(size: int) -> int:
    """The next power of two, at least the smallest operand of a tensor core."""
    return max(1 << (size - 1).bit_length(), 16)
