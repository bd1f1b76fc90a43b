"""Weights in large pages of memory: what is larger than the caches is read faster."""

from __future__ import annotations

import contextlib
import ctypes
import mmap

import torch
from torch import Tensor

_LARGE = 2 << 20
"""Bytes of a large page."""


@torch.no_grad()
def in_large_pages(tensor: Tensor) -> Tensor:
    """A copy of ``tensor`` of the same strides, in large pages where the system has them.

    Costs at most two large pages more than a plain copy; small tensors are copied plainly.
    """
    copy = torch.empty_like(tensor)
    size = copy.numel() * copy.element_size()
    if size >= 2 * _LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        first = -(-copy.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (copy.data_ptr() + size - first) // mmap.PAGESIZE * mmap.PAGESIZE
        with contextlib.suppress(OSError, AttributeError):  # advice that a system without it does not need
            advise = ctypes.CDLL(None).madvise
            advise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    return copy.copy_(tensor)
