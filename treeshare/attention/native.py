"""Tree attention by a compiled kernel: bfloat16 or float32, float32 sums.

The kernel, ``native/attention.h``, reads the same KV store as the other backends.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from treeshare.attention.api import AttentionBackend
from treeshare.attention.key_blocks import block_slices
from treeshare.attention.state import AttentionState
from treeshare.errors import ConfigError
from treeshare.native import ELEMENTS, kernel_level, kernels, unused_reason
from treeshare.native.structs import PIECE, SLICE, Projections, TreeStep
from treeshare.stopwatch import OFF, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from treeshare.attention.api import AttentionSpec
    from treeshare.attention.key_blocks import Piece
    from treeshare.attention.layout import BatchLayout
    from treeshare.kv import KVGeometry


_KINDS = tuple(f"attention: {kind}" for kind in ("shared", "causal", "private", "merge", "store"))
"""The parts of a lap, in the order of ``Kind`` in ``attention.h``."""


class NativeAttention(AttentionBackend):
    """The compiled kernel; see the module's text and ``AttentionBackend``.

    Args:
        stopwatch: Is told how long storing and each kind of node took: the time of the call, divided in
            proportion to what the threads spent on each.
        level: Whose kernels; None: the process's, ``kernel_level()``.

    Raises:
        ConfigError: If the kernel is not available: not built, switched off, or a CPU that runs none.
    """

    name = "native"
    keeps_bits = True

    def __init__(self, stopwatch: Stopwatch = OFF, level: str | None = None) -> None:
        self._kernels: dict[torch.dtype, Any] = {dtype: kernels(dtype, level) for dtype in ELEMENTS}
        if (level or kernel_level()) == "none":
            reason = unused_reason() or "switched off, or this CPU runs none of them"
            raise ConfigError(f"attention: no compiled kernels: {reason}")
        self._plan: _Plan | None = None
        self._stopwatch = stopwatch
        self._nanoseconds = np.zeros(len(_KINDS), np.int64)

    @staticmethod
    def can_read(geometry: KVGeometry, level: str | None = None) -> bool:
        """Whether the kernel is available and reads such KV."""
        return geometry.head_dim % 16 == 0 and kernels(geometry.dtype, level) is not None

    def end_step(self) -> None:
        """See ``AttentionBackend.end_step``."""
        self._plan = None

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        layer: int,
        layout: BatchLayout,
        spec: AttentionSpec,
    ) -> AttentionState:
        """See ``AttentionBackend.attend``."""
        if self._plan is None or self._plan.layout is not layout:
            self._plan = _Plan(layout, query.shape[1])
        fields = self._plan.step(layer)
        if self._stopwatch.enabled:
            self._nanoseconds[:] = 0
            fields.nanoseconds = self._nanoseconds.ctypes.data
        dense = [_dense_rows(tensor) for tensor in (query, key, value)]
        out = torch.empty(query.shape, dtype=query.dtype)
        lse = torch.empty(query.shape[:2])
        out[layout.num_rows :] = 0
        lse[layout.num_rows :] = -torch.inf
        projections = Projections(*(t.data_ptr() for t in dense), *(t.stride(0) for t in dense))
        self._kernels[query.dtype].treeshare_attend(
            ctypes.byref(fields), ctypes.byref(projections), spec.scale, out.data_ptr(), lse.data_ptr()
        )
        if self._stopwatch.enabled:
            self._stopwatch.split(dict(zip(_KINDS, self._nanoseconds.tolist(), strict=True)))
        return AttentionState(out, lse)


class _Plan:
    """A layout as the arrays that the kernel reads, made once a step."""

    def __init__(self, layout: BatchLayout, num_q_heads: int) -> None:
        self.layout = layout
        geometry, store = layout.store.geometry, layout.store
        slices = block_slices(layout)
        self._slices = np.zeros(len(slices), SLICE)
        self._slices["first_row"] = [part.first_row for part in slices]
        self._slices["last_row"] = [part.last_row for part in slices]
        self._slices["num_pieces"] = [len(part.pieces) for part in slices]
        self._slices["first_piece"] = self._slices["num_pieces"].cumsum() - self._slices["num_pieces"]
        self._slices["num_keys"] = [part.num_keys for part in slices]
        self._slices["first_own_token"] = [part.first_own_token or 0 for part in slices]
        self._slices["causal"] = [part.first_own_token is not None for part in slices]
        self._places = _Places([piece for part in slices for piece in part.pieces])
        num_pages, self._tokens = np.zeros((2, layout.num_rows), np.int64)
        pages: list[int] = []
        for row, source in zip(layout.decode_rows.tolist(), layout.decodes, strict=True):
            used = source.pages[: source.num_private // store.page_size + 1]
            num_pages[row], self._tokens[row] = len(used), source.num_private + 1
            pages += [page.index for page in used]
        self._page_indptr = np.concatenate([[0], num_pages.cumsum()])
        self._pages = _int64(pages)
        self._step = TreeStep(
            layout.num_rows,
            geometry.num_kv_heads,
            num_q_heads // geometry.num_kv_heads,
            geometry.head_dim,
            geometry.value_width,
            store.page_size,
            len(self._slices),
            self._slices.ctypes.data,
            self._places.pieces.ctypes.data,
            self._page_indptr.ctypes.data,
            self._pages.ctypes.data,
            self._tokens.ctypes.data,
        )

    def step(self, layer: int) -> TreeStep:
        """The kernel's view of the step in one layer; valid until the next call."""
        store, step = self.layout.store, self._step
        self._places.locate(layer)
        step.pool_keys = store.pool.keys[layer].data_ptr()
        step.pool_values = store.pool.values[layer].data_ptr()
        return step


def _int64(values: Sequence[Any]) -> NDArray[np.int64]:
    return np.ascontiguousarray(np.array(values, dtype=np.int64))


class _Places:
    """Pieces of segments as the kernel reads them, and where they lie in a layer.

    Attributes:
        pieces: ``[n]`` ``PIECE``; addresses as of the last ``locate``.
    """

    def __init__(self, parts: Sequence[Piece]) -> None:
        self._blocks = list({id(segment.block): segment.block for segment, _, _ in parts}.values())
        numbers = {id(block): number for number, block in enumerate(self._blocks)}
        self._block = _int64([numbers[id(segment.block)] for segment, _, _ in parts])
        self.pieces = np.zeros(len(parts), PIECE)
        self.pieces["padded_tokens"] = [segment.block.padded_tokens for segment, _, _ in parts]
        self.pieces["num_tokens"] = [last - first for _, first, last in parts]
        self._key_offsets = _offsets(parts, [segment.block.keys_t[0] for segment, _, _ in parts], axis=3)
        self._value_offsets = _offsets(parts, [segment.block.values[0] for segment, _, _ in parts], axis=2)

    def locate(self, layer: int) -> None:
        """Write a layer's addresses into ``pieces``; all layers of a block have the same shapes."""
        keys = _addresses([block.keys_t[layer] for block in self._blocks])
        values = _addresses([block.values[layer] for block in self._blocks])
        self.pieces["keys"] = keys[self._block] + self._key_offsets
        self.pieces["values"] = values[self._block] + self._value_offsets


def _addresses(tensors: Sequence[Tensor]) -> NDArray[np.uint64]:
    return np.array([tensor.data_ptr() for tensor in tensors], dtype=np.uint64)


def _offsets(parts: Sequence[Piece], tensors: Sequence[Tensor], axis: int) -> NDArray[np.uint64]:
    """Bytes from a tensor's start, ``[segments, H, ...]`` with tokens on ``axis``, to each piece."""
    return np.array(
        [
            (segment.index * tensor.stride(0) + first * tensor.stride(axis)) * tensor.element_size()
            for (segment, first, _), tensor in zip(parts, tensors, strict=True)
        ],
        dtype=np.uint64,
    )


def _dense_rows(tensor: Tensor) -> Tensor:
    """``tensor`` ``[T, heads, D]``; a copy unless the heads of a row already lie side by side."""
    _, heads, head_dim = tensor.shape
    is_dense = tensor.stride(2) == 1 and (heads == 1 or tensor.stride(1) == head_dim)
    return tensor if is_dense else tensor.contiguous()
