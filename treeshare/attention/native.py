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
from treeshare.attention.state import AttentionState
from treeshare.errors import ConfigError
from treeshare.native import ELEMENTS, kernel_level, kernels, unused_reason
from treeshare.native.structs import SLICE, Projections, TreeStep
from treeshare.stopwatch import OFF, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from treeshare.attention.api import AttentionSpec
    from treeshare.attention.layout import BatchLayout
    from treeshare.kv import KVGeometry, Segment


_KINDS = tuple(f"attention: {kind}" for kind in ("shared", "causal", "private", "merge", "store"))
"""The parts of a lap, in the order of ``Kind`` in ``attention.h``."""


class NativeAttention(AttentionBackend):
    """The compiled kernel; see the module's text and ``AttentionBackend``.

    Args:
        stopwatch: Is told how long storing and each kind of node took: the time of the call, divided in
            proportion to what the threads spent on each.

    Raises:
        ConfigError: If the kernel is not available: not built, switched off, or a CPU without AVX2.
    """

    name = "native"

    def __init__(self, stopwatch: Stopwatch = OFF) -> None:
        self._kernels: dict[torch.dtype, Any] = {dtype: kernels(dtype) for dtype in ELEMENTS}
        if kernel_level() == "none":
            reason = unused_reason() or "switched off, or this CPU lacks AVX2"
            raise ConfigError(f"attention: no compiled kernels: {reason}")
        self._plan: _Plan | None = None
        self._stopwatch = stopwatch
        self._nanoseconds = np.zeros(len(_KINDS), np.int64)

    @staticmethod
    def can_read(geometry: KVGeometry) -> bool:
        """Whether the kernel is available and reads such KV."""
        return geometry.head_dim % 16 == 0 and kernels(geometry.dtype) is not None

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
        causal = layout.causal
        self._segments = [s for s, _, _ in layout.slices] + [chunk.segment for chunk in causal]
        self._slices = np.zeros(len(self._segments), SLICE)
        shared, own = np.split(self._slices, [len(layout.slices)])
        shared["first_row"] = [first for _, first, _ in layout.slices]
        shared["last_row"] = [last for _, _, last in layout.slices]
        shared["num_keys"] = [segment.num_tokens for segment, _, _ in layout.slices]
        own["first_row"] = [chunk.first_row for chunk in causal]
        own["last_row"] = [chunk.last_row for chunk in causal]
        own["num_keys"] = [chunk.end for chunk in causal]
        own["first_own_token"] = [chunk.start for chunk in causal]
        own["causal"] = 1
        self._slices["padded_tokens"] = [segment.block.padded_tokens for segment in self._segments]
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
            0,
            0,
            self._page_indptr.ctypes.data,
            self._pages.ctypes.data,
            self._tokens.ctypes.data,
        )

    def step(self, layer: int) -> TreeStep:
        """The kernel's view of the step in one layer; valid until the next call."""
        store, step = self.layout.store, self._step
        self._keys = _addresses(self._segments, [segment.block.keys_t[layer] for segment in self._segments])
        self._values = _addresses(self._segments, [segment.block.values[layer] for segment in self._segments])
        step.keys, step.values = self._keys.ctypes.data, self._values.ctypes.data
        step.pool_keys = store.pool.keys_t[layer].data_ptr()
        step.pool_values = store.pool.values[layer].data_ptr()
        return step


def _int64(values: Sequence[Any]) -> NDArray[np.int64]:
    return np.ascontiguousarray(np.array(values, dtype=np.int64))


def _addresses(segments: Sequence[Segment], tensors: Sequence[Tensor]) -> NDArray[np.uint64]:
    """Where each segment's part of its block's tensor begins."""
    pairs = zip(segments, tensors, strict=True)
    return np.array(
        [t.data_ptr() + s.index * t.stride(0) * t.element_size() for s, t in pairs], dtype=np.uint64
    )


def _dense_rows(tensor: Tensor) -> Tensor:
    """``tensor`` ``[T, heads, D]``; a copy unless the heads of a row already lie side by side."""
    _, heads, head_dim = tensor.shape
    is_dense = tensor.stride(2) == 1 and (heads == 1 or tensor.stride(1) == head_dim)
    return tensor if is_dense else tensor.contiguous()
