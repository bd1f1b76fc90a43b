"""How the Triton kernels' work is cut, by what they are compiled for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from treeshare.kv import KVGeometry, LayerKV

CHUNK = 512
"""Keys of a node that one online softmax covers before it is merged with the rest; work is cut there."""


def is_interpreted() -> bool:
    """Whether ``TRITON_INTERPRET=1``: kernels run on the CPU, slowly, to be tested."""
    return os.environ.get("TRITON_INTERPRET") == "1"


class TileShape(NamedTuple):
    """How a kernel's work is cut; a function of head_dim, dtype and group size only.

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
    4: {64: TileShape(32, 32, 4, 2), 128: TileShape(32, 16, 8, 2, 128), 256: TileShape(16, 32, 8, 2)},
}
"""Tiles of ``attend_slices`` by bytes of an element and padded head_dim: the largest that spill no register
(docs/bench/triton_kernels.md). Float32 has no tensor cores, which would round it."""

PAGE_TILES = {
    2: {64: TileShape(16, 64, 4, 2, 128), 128: TileShape(16, 64, 4, 2), 256: TileShape(16, 64, 4, 2)},
    4: {64: TileShape(16, 32, 4, 2), 128: TileShape(16, 32, 8, 2, 128), 256: TileShape(16, 32, 8, 2, 128)},
}
"""Tiles of ``attend_pages``, likewise; short pages and many query heads of a KV head change them."""


@dataclass(frozen=True, kw_only=True)
class KernelShape:
    """What the kernels are compiled for: a model, a dtype, a page size.

    Attributes:
        geometry: Shape and dtype of the KV.
        group_size: Query heads of each KV head.
        page_size: Tokens of a page; a multiple of 16.
    """

    geometry: KVGeometry
    group_size: int
    page_size: int

    @property
    def layer(self) -> LayerKV:
        """The shape of every layer's KV."""
        return self.geometry.layers[0]

    @property
    def num_kv_heads(self) -> int:
        """KV heads."""
        return self.layer.num_heads

    @property
    def width(self) -> int:
        """head_dim up to a power of two: ``BLOCK_D``."""
        return _power_of_two(self.layer.key_width)

    @property
    def slice_tile(self) -> TileShape:
        """The tile of ``attend_slices``."""
        return SLICE_TILES[self.geometry.dtype.itemsize][max(self.width, 64)]

    @property
    def page_tile(self) -> TileShape:
        """The tile of ``attend_pages``: the query heads of a KV head, and keys of one page."""
        tile = PAGE_TILES[self.geometry.dtype.itemsize][max(self.width, 64)]
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

    def store_tokens(self) -> dict[str, Any]:
        """Compile-time constants of ``store_tokens``."""
        return {
            "NUM_KV_HEADS": self.num_kv_heads,
            "HEAD_DIM": self.layer.key_width,
            "VALUE_WIDTH": self.layer.stored_width,
            "BLOCK_H": 1 << (self.num_kv_heads - 1).bit_length(),
            "BLOCK_D": self.width,
            "enable_fp_fusion": False,
        }

    def attend_slices(self, *, causal: bool) -> dict[str, Any]:
        """Compile-time constants of ``attend_slices``."""
        return {"CAUSAL": causal, "CHUNK": self.chunk, **self._attend(self.slice_tile)}

    def attend_pages(self) -> dict[str, Any]:
        """Compile-time constants of ``attend_pages``."""
        return {"PAGE_SIZE": self.page_size, "CHUNK": self.page_chunk, **self._attend(self.page_tile)}

    def merge_states(self) -> dict[str, Any]:
        """Compile-time constants of ``merge_states``."""
        return {
            "NUM_Q_HEADS": self.num_kv_heads * self.group_size,
            "GROUP": self.group_size,
            "HEAD_DIM": self.layer.key_width,
            "BLOCK_M": 1 << (self.group_size - 1).bit_length(),
            "BLOCK_D": self.width,
            "INTERPRETED": is_interpreted(),
            "enable_fp_fusion": False,
        }

    def _attend(self, tile: TileShape) -> dict[str, Any]:
        """Compile-time constants that both attention kernels have."""
        return {
            "NUM_KV_HEADS": self.num_kv_heads,
            "GROUP": self.group_size,
            "HEAD_DIM": self.layer.key_width,
            "VALUE_WIDTH": self.layer.stored_width,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.keys,
            "BLOCK_D": self.width,
            "INTERPRETED": is_interpreted(),
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
            "maxnreg": tile.max_registers,
            "enable_fp_fusion": False,  # what the compiler fuses could differ from kernel to kernel
        }


def _power_of_two(size: int) -> int:
    """The next power of two, at least the smallest operand of a tensor core."""
    return max(1 << (size - 1).bit_length(), 16)
