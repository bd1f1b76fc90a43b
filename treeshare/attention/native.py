"""Tree attention by a compiled kernel: bfloat16 or float32, float32 sums.

The kernel, ``native/attention.h``, reads the same KV store as the other backends.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from treeshare.attention.api import ALL_FEATURES, AttentionBackend
from treeshare.attention.native_plan import NativePlan
from treeshare.attention.state import AttentionState
from treeshare.errors import ConfigError
from treeshare.native import ELEMENTS, int8_kernels, kernel_level, kernels, unused_reason
from treeshare.native.structs import Projections
from treeshare.stopwatch import OFF, Stopwatch

if TYPE_CHECKING:
    from treeshare.attention.api import AttentionSpec
    from treeshare.attention.layout import BatchLayout
    from treeshare.kv import KVGeometry


_KINDS = tuple(f"attention: {kind}" for kind in ("shared", "causal", "private", "merge", "store"))
"""The parts of a lap, in the order of ``Kind`` in ``attention.h``."""

KEY_WORD = 4
"""Numbers of a key that a level may multiply together: keys consist of whole words."""


class NativeAttention(AttentionBackend):
    """The compiled kernel; see the module's text and ``AttentionBackend``.

    Args:
        stopwatch: Is told how long storing and each kind of node took: the time of the call, divided in
            proportion to what the threads spent on each.
        level: Whose kernels; None: the process's, ``kernel_level()``.
        in_codes: Whether prompts' keys and values are multiplied in codes of 8 bits, by the process's level:
            all give the same bits. For models whose weights are in codes, too.

    Raises:
        ConfigError: If the kernel is not available: not built, switched off, or a CPU that runs none.
    """

    name = "native"
    features = ALL_FEATURES
    keeps_bits = True

    def __init__(
        self, stopwatch: Stopwatch = OFF, level: str | None = None, *, in_codes: bool = False
    ) -> None:
        self._kernels: dict[torch.dtype, Any] = {dtype: kernels(dtype, level) for dtype in ELEMENTS}
        if (level or kernel_level()) == "none":
            reason = unused_reason() or "switched off, or this CPU runs none of them"
            raise ConfigError(f"attention: no compiled kernels: {reason}")
        self._multiply_codes: ctypes.c_void_p | None = None
        if in_codes:
            multiply = int8_kernels().treeshare_multiply_codes  # type: ignore[union-attr]
            self._multiply_codes = ctypes.cast(multiply, ctypes.c_void_p)
        self._plan: NativePlan | None = None
        self._stopwatch = stopwatch
        self._nanoseconds = np.zeros(len(_KINDS), np.int64)

    @staticmethod
    def can_read(geometry: KVGeometry, level: str | None = None) -> bool:
        """Whether the kernel is available and reads such KV."""
        has_widths = all(layer.key_width % KEY_WORD == 0 for layer in geometry.layers)
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
        assert sinks is None or sinks.dtype == torch.float32
        if self._plan is None or self._plan.layout is not layout:
            self._plan = NativePlan(layout)
        fields = self._plan.step(layer, query.shape[1], spec)
        if self._stopwatch.enabled:
            self._nanoseconds[:] = 0
            fields.nanoseconds = self._nanoseconds.ctypes.data
        fields.multiply_codes = self._multiply_codes
        sinks = None if sinks is None else sinks.contiguous()
        fields.sinks = None if sinks is None else sinks.data_ptr()
        out = torch.empty(*query.shape[:2], fields.value_width, dtype=query.dtype)
        lse = torch.empty(query.shape[:2])
        out[layout.num_rows :] = 0
        lse[layout.num_rows :] = -torch.inf
        dense = [None if tensor is None else _dense_rows(tensor) for tensor in (query, key, value)]
        projections = Projections(
            *(None if tensor is None else tensor.data_ptr() for tensor in dense),
            *(0 if tensor is None else tensor.stride(0) for tensor in dense),
        )
        self._kernels[query.dtype].treeshare_attend(
            ctypes.byref(fields), ctypes.byref(projections), spec.scale, out.data_ptr(), lse.data_ptr()
        )
        if self._stopwatch.enabled:
            self._stopwatch.split(dict(zip(_KINDS, self._nanoseconds.tolist(), strict=True)))
        return AttentionState(out, lse)


def _dense_rows(tensor: Tensor) -> Tensor:
    """``tensor`` ``[T, heads, D]``; a copy unless the heads of a row already lie side by side."""
    _, heads, head_dim = tensor.shape
    is_dense = tensor.stride(2) == 1 and (heads == 1 or tensor.stride(1) == head_dim)
    return tensor if is_dense else tensor.contiguous()
