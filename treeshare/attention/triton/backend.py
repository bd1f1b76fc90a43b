"""Tree attention on GPUs: one launch per kind of work and layer, whatever the tree looks like.

The host turns a step's layout into tables of work items once; every layer launches the same grids over them
(``kernels.py``). Where a grid would leave the device idle, nodes are cut into chunks of keys, one
program each; a row's bits do not depend on that.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

import torch

from treeshare.attention.api import AttentionBackend
from treeshare.attention.state import AttentionState
from treeshare.attention.triton.shape import is_interpreted
from treeshare.attention.triton.tables import KernelTables, TablesSize
from treeshare.errors import ConfigError
from treeshare.stopwatch import OFF, Stopwatch

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    from treeshare.attention.api import AttentionSpec
    from treeshare.attention.layout import BatchLayout
    from treeshare.kv import KVGeometry

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 256

LOG2_E = 1.4426950408889634


def load_kernels() -> ModuleType:
    """Import the kernels.

    Raises:
        ConfigError: If Triton is not installed.
    """
    if importlib.util.find_spec("triton") is None:
        raise ConfigError.of(
            "backend",
            got="triton",
            expected="an environment with Triton",
            remedy="pip install 'treeshare[triton]'",
        )
    return importlib.import_module("treeshare.attention.triton.kernels")


class TritonAttention(AttentionBackend):
    """Kernels on a CUDA device, or interpreted on the CPU; see the module's text and ``AttentionBackend``.

    Args:
        geometry: Shape and dtype of the KV.
        device: Of the KV and of all tensors.
        stopwatch: Is told how long each kind of node took; then every launch is waited for.
        num_processors: Multiprocessors to keep busy; None asks the device.

    Raises:
        ConfigError: If Triton is not installed, the device is not CUDA and nothing is interpreted, or the
            kernels do not handle such KV.
    """

    name = "triton"

    def __init__(
        self,
        geometry: KVGeometry,
        device: torch.device | str = "cpu",
        stopwatch: Stopwatch = OFF,
        *,
        num_processors: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        if self.device.type != "cuda" and not is_interpreted():
            raise ConfigError.of(
                "backend",
                got="triton",
                expected=f"a CUDA device, not {self.device.type}",
                remedy="take auto, or set TRITON_INTERPRET=1 to run its kernels slowly on the CPU",
            )
        widths = geometry.widths
        if geometry.dtype not in DTYPES or widths[-1] > MAX_HEAD_DIM:
            raise ConfigError.of(
                "backend",
                got="triton",
                expected=f"float16, bfloat16 or float32 and a head_dim up to {MAX_HEAD_DIM}, "
                f"not {str(geometry.dtype).removeprefix('torch.')} and {widths[-1]}",
            )
        if len(set(geometry.layers)) > 1 or len(widths) > 1:
            raise ConfigError.of("backend", got="triton", expected="layers whose KV has one shape and width")
        self._kernels = load_kernels()
        self._stopwatch = stopwatch
        if num_processors is None:
            num_processors = (
                torch.cuda.get_device_properties(self.device).multi_processor_count
                if self.device.type == "cuda"
                else 1
            )
        self._num_processors = num_processors
        self._tables: KernelTables | None = None

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
        query, key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key, value))
        tables = self._tables
        if tables is None or tables.layout is not layout or tables.query_shape != query.shape:
            tables = self._tables = KernelTables.make(
                layout, tuple(query.shape), self.device, self._num_processors
            )
        launches = _Launches(self._kernels, tables, layer)
        launches.store(key, value)
        self._lap("attention: store")
        launches.slices(query, spec.scale, causal=False)
        self._lap("attention: shared")
        launches.slices(query, spec.scale, causal=True)
        self._lap("attention: causal")
        launches.pages(query, spec.scale)
        self._lap("attention: private")
        state = launches.merge(query.dtype, spec.scale)
        self._lap("attention: merge")
        return state

    def fill_fixed(
        self, layout: BatchLayout, query_shape: tuple[int, ...], plans: dict[TablesSize, KernelTables]
    ) -> TablesSize:
        """Plan a step before its first layer runs, for a CUDA graph; see ``KernelTables.make_fixed``."""
        size = KernelTables.make_fixed(layout, query_shape, self.device, self._num_processors, plans)
        self._tables = plans[size]
        return size

    def _lap(self, part: str) -> None:
        if self._stopwatch.enabled and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._stopwatch.lap(part)


class _Launches:
    """The kernel launches of one layer of a step."""

    def __init__(self, kernels: ModuleType, tables: KernelTables, layer: int) -> None:
        self._kernels, self._tables, self._layer = kernels, tables, layer
        self._shape = tables.shape
        self._states = tables.numerators, tables.highs, tables.totals

    def store(self, key: Tensor, value: Tensor) -> None:
        """Store the step's keys and values."""
        tables = self._tables
        if not len(tables.targets):
            return
        strides = key.stride(0), key.stride(1), value.stride(0), value.stride(1)
        self._kernels.store_tokens[(len(tables.targets),)](
            key, value, tables.bases[self._layer], tables.targets, *strides, **self._shape.store_tokens()
        )

    def slices(self, query: Tensor, scale: float, *, causal: bool) -> None:
        """Attend to shared segments, or each prefill chunk to its own."""
        items = self._tables.causal if causal else self._tables.shared
        if not len(items):
            return
        self._kernels.attend_slices[(len(items), self._shape.num_kv_heads)](
            query,
            self._tables.bases[self._layer],
            items,
            *self._states,
            query.stride(0),
            query.stride(1),
            scale * LOG2_E,
            **self._shape.attend_slices(causal=causal),
        )

    def pages(self, query: Tensor, scale: float) -> None:
        """Attend each decoding row to its private pages."""
        tables = self._tables
        if not len(tables.private):
            return
        self._kernels.attend_pages[(len(tables.private), self._shape.num_kv_heads)](
            query,
            tables.bases[self._layer],
            tables.private,
            tables.pages,
            *self._states,
            query.stride(0),
            query.stride(1),
            scale * LOG2_E,
            **self._shape.attend_pages(),
        )

    def merge(self, dtype: torch.dtype, scale: float) -> AttentionState:
        """Merge every row's partial states."""
        tables = self._tables
        out = torch.empty(tables.query_shape, dtype=dtype, device=tables.bases.device)
        lse = torch.empty(tables.query_shape[:2], device=tables.bases.device)
        self._kernels.merge_states[(tables.query_shape[0], self._shape.num_kv_heads)](
            *self._states,
            tables.source_indptr,
            tables.sources,
            out,
            lse,
            scale * LOG2_E,
            **self._shape.merge_states(),
        )
        return AttentionState(out, lse)
