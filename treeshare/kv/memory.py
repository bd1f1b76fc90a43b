"""The shape of a token's KV, fresh memory for it, and memory that goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class KVGeometry:
    """The shape of a model's KV cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def value_width(self) -> int:
        """``E``: head_dim, the column of ones, and zeros up to a multiple of 16."""
        return -(-(self.head_dim + 1) // 16) * 16

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one stored token over all layers, the value row's extension included."""
        width = self.head_dim + self.value_width
        return self.num_layers * self.num_kv_heads * width * self.dtype.itemsize


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
        return torch.empty(shape, dtype=self.geometry.dtype, device=self.device)

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
