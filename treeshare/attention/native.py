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
from treeshare.kv import page_index
from treeshare.native import ELEMENTS, kernel_level, kernels, unused_reason
from treeshare.native.structs import PIECE, SLICE, Projections, TreeStep
from treeshare.stopwatch import OFF, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from treeshare.attention.api import AttentionSpec
    from treeshare.attention.key_blocks import Piece
    from treeshare.attention.layout import BatchLayout
    from treeshare.kv import KVGeometry, LayerKV


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
        has_widths = all(
            layer.key_width == layer.value_width and layer.key_width % 16 == 0 for layer in geometry.layers
        )
        return has_widths and kernels(geometry.dtype, level) is not None

    def end_step(self) -> None:
        """See ``AttentionBackend.end_step``."""
        self._plan = None

    def attend(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        *,
        layer: int,
        layout: BatchLayout,
        spec: AttentionSpec,
        sinks: Tensor | None = None,
    ) -> AttentionState:
        """See ``AttentionBackend.attend``."""
        assert key is not None
        assert value is not None
        if self._plan is None or self._plan.layout is not layout:
            self._plan = _Plan(layout)
        fields = self._plan.step(layer, query.shape[1])
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

    def __init__(self, layout: BatchLayout) -> None:
        self.layout = layout
        store = layout.store
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
            used = source.pages.pages[0][: source.num_private // store.page_size + 1]
            num_pages[row], self._tokens[row] = len(used), source.num_private + 1
            pages += map(page_index, used)
        self._page_indptr = np.concatenate([[0], num_pages.cumsum()])
        self._pages = _int64(pages)
        self._step = TreeStep(
            layout.num_rows,
            *(0, 0, 0, 0),  # of a layer
            store.page_size,
            len(self._slices),
            self._slices.ctypes.data,
            self._places.pieces.ctypes.data,
            self._page_indptr.ctypes.data,
            self._pages.ctypes.data,
            self._tokens.ctypes.data,
        )

    def step(self, layer: int, num_q_heads: int) -> TreeStep:
        """The kernel's view of the step in one layer; valid until the next call."""
        store, step = self.layout.store, self._step
        shape = store.geometry.layers[layer]
        step.num_kv_heads, step.group_size = shape.num_heads, num_q_heads // shape.num_heads
        step.head_dim, step.value_width = shape.key_width, shape.stored_width
        self._places.locate(layer, shape)
        step.pool_keys = store.pool_of(layer).keys[layer].data_ptr()
        step.pool_values = store.pool_of(layer).values[layer].data_ptr()
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
        self._parts = parts
        self._offsets: dict[LayerKV, tuple[NDArray[np.uint64], NDArray[np.uint64]]] = {}

    def locate(self, layer: int, shape: LayerKV) -> None:
        """Write a layer's addresses into ``pieces``; offsets are computed once for layers of one shape."""
        if shape not in self._offsets:
            blocks = [segment.block for segment, _, _ in self._parts]
            self._offsets[shape] = (
                _offsets(self._parts, [block.keys_t[layer] for block in blocks], axis=3),
                _offsets(self._parts, [block.values[layer] for block in blocks], axis=2),
            )
        key_offsets, value_offsets = self._offsets[shape]
        keys = _addresses([block.keys_t[layer] for block in self._blocks])
        values = _addresses([block.values[layer] for block in self._blocks])
        self.pieces["keys"] = keys[self._block] + key_offsets
        self.pieces["values"] = values[self._block] + value_offsets


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
