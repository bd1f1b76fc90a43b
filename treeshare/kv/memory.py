"""The shape of a token's KV, new memory for it, and memory that is returned to the system."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_NORESERVE = getattr(
    mmap, "MAP_NORESERVE", 0x4000
)  # Linux's number on x86-64 and aarch64; a name from Python 3.13 on
_UNRESERVED_BYTES = 64 << 20
"""Larger tensors are address space that the system sets nothing aside for: a process that has several of them
could not fork otherwise, though hardly any of it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKV:
    """The shape of a token's keys and values in one layer.

    Attributes:
        num_heads: KV heads.
        key_width: Numbers of a key.
        value_width: Numbers of a value.
        reach: Positions that a row sees at most, its own included; None: all.
    """

    num_heads: int
    key_width: int
    value_width: int
    reach: int | None = None

    @property
    def stored_width(self) -> int:
        """``E``: a value's numbers, the column of ones, and zeros up to a multiple of 16."""
        return -(-(self.value_width + 1) // 16) * 16

    @property
    def size(self) -> int:
        """Numbers of one stored token, the value row's extension included."""
        return self.num_heads * (self.key_width + self.stored_width)


@dataclass(frozen=True, kw_only=True)
class KVGeometry:
    """The shape of a model's KV cache.

    Attributes:
        layers: Each layer's: of every call of attention whose keys and values are its own.
        dtype: Of all numbers.
    """

    layers: tuple[LayerKV, ...]
    dtype: torch.dtype

    @classmethod
    def uniform(cls, *, num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> KVGeometry:
        """Layers of one shape, with keys as wide as values."""
        layer = LayerKV(num_heads=num_kv_heads, key_width=head_dim, value_width=head_dim)
        return cls(layers=(layer,) * num_layers, dtype=dtype)

    @property
    def num_layers(self) -> int:
        """Layers that have KV."""
        return len(self.layers)

    @property
    def reaches(self) -> tuple[int | None, ...]:
        """How far rows see, each number once, all (None) first."""
        some = {layer.reach for layer in self.layers}
        return (*([None] * (None in some)), *sorted(reach for reach in some if reach is not None))

    @property
    def kept(self) -> tuple[tuple[int, int | None], ...]:
        """Bytes of a token in the layers of each of ``reaches``, and that reach."""
        sizes = dict.fromkeys(self.reaches, 0)
        for layer in self.layers:
            sizes[layer.reach] += layer.size * self.dtype.itemsize
        return tuple((size, reach) for reach, size in sizes.items())

    @property
    def widths(self) -> list[int]:
        """The widths of keys and values, ascending."""
        return sorted({width for layer in self.layers for width in (layer.key_width, layer.value_width)})

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one stored token over all layers."""
        return sum(layer.size for layer in self.layers) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class KVMemory:
    """Allocates the tensors of a store.

    Attributes:
        geometry: Shape and dtype of one token's KV.
        device: Where the tensors lie.
        poison: Unused keys and values are NaN (tests).
    """

    geometry: KVGeometry
    device: torch.device
    poison: bool

    @property
    def is_lazy(self) -> bool:
        """Whether a new tensor is only address space, which gets memory when it is first written."""
        return self.device.type == "cpu" and not self.poison

    def allocate(self, *shape: int) -> Tensor:
        """A tensor whose contents do not matter."""
        if self.poison:
            return torch.full(shape, torch.nan, dtype=self.geometry.dtype, device=self.device)
        num_bytes = math.prod(shape) * self.geometry.dtype.itemsize
        if self.is_lazy and sys.platform == "linux" and num_bytes >= _UNRESERVED_BYTES:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
            space = mmap.mmap(-1, num_bytes, flags=flags)
            return torch.frombuffer(space, dtype=self.geometry.dtype).view(shape)
        return torch.empty(shape, dtype=self.geometry.dtype, device=self.device)

    def allocate_together(self, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Tensors that are freed together, each a multiple of 64 bytes; in one piece where ``is_lazy``.

        Many small pieces would leave holes in the heap that hold no whole page, which never go back.
        """
        if not self.is_lazy:
            return [self.allocate(*shape) for shape in shapes]
        sizes = [math.prod(shape) for shape in shapes]
        parts = torch.split(self.allocate(sum(sizes)), sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def keep_rows(self, tensor: Tensor, kept: Tensor) -> Tensor:
        """``tensor[kept]``, ``kept`` ascending; the memory of the other rows is freed.

        Where ``is_lazy`` the rows move within ``tensor``, whose contents are lost, and nothing is allocated
        for those that stay where they are.
        """
        if not self.is_lazy:
            return tensor.index_select(0, kept)
        first = int((kept == torch.arange(len(kept))).sum())  # ascending: up to the first gap all stay
        if first < len(kept):
            tensor[first : len(kept)] = tensor.index_select(0, kept[first:])
        self.give_back(tensor, len(kept))
        return tensor[: len(kept)]

    def give_back(self, tensor: Tensor, first: int) -> None:
        """Return the memory of ``tensor[first:]`` to the system, as far as it is whole pages.

        The contents are lost, the addresses stay: what is written there takes memory again. Does nothing
        unless ``is_lazy``.

        Args:
            tensor: Contiguous, from ``allocate``.
            first: Index along its first axis.
        """
        if self.is_lazy and sys.platform == "linux":
            start = tensor.data_ptr() + first * tensor.stride(0) * tensor.element_size()
            start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            size = (tensor.data_ptr() + tensor.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
            if size > 0:
                ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def trim_heap() -> None:
    """Return to the system what was freed in this process; only glibc keeps so much that it must be asked."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
