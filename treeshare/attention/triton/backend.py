"""Tree attention on GPUs: one launch per kind of work and layer, whatever the tree looks like.

The host turns a step's layout into tables of work items once for all layers of one shape and window; each of
them launches the same grids over them (``kernels.py``). Where a grid would leave the device idle, nodes are
cut into chunks of keys, one program each; a row's bits do not depend on that.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

import torch

from treeshare.attention.api import ALL_FEATURES, AttentionBackend
from treeshare.attention.state import AttentionState
from treeshare.attention.triton.arrays import PlanKey
from treeshare.attention.triton.shape import is_interpreted
from treeshare.attention.triton.tables import FixedPlan, KernelTables
from treeshare.errors import ConfigError
from treeshare.installation import how_to_add
from treeshare.stopwatch import OFF, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Iterable
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
            remedy=how_to_add("triton"),
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
    features = ALL_FEATURES

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
                remedy="use auto, or set TRITON_INTERPRET=1 to run its kernels slowly on the CPU",
            )
        widths = geometry.widths
        if geometry.dtype not in DTYPES or widths[-1] > MAX_HEAD_DIM:
            raise ConfigError.of(
                "backend",
                got="triton",
                expected=f"float16, bfloat16 or float32 and heads of a width up to {MAX_HEAD_DIM}, "
                f"not {str(geometry.dtype).removeprefix('torch.')} and {widths[-1]}",
            )
        self._kernels = load_kernels()
        self._stopwatch = stopwatch
        if num_processors is None:
            num_processors = (
                torch.cuda.get_device_properties(self.device).multi_processor_count
                if self.device.type == "cuda"
                else 1
            )
        self._num_processors = num_processors
        self._layout: BatchLayout | None = None
        self._tables: dict[PlanKey, KernelTables] = {}

    def end_step(self) -> None:
        """See ``AttentionBackend.end_step``."""
        self._layout, self._tables = None, {}

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
        query = _with_dense_heads(query)
        plan = PlanKey.of(layout, layer, spec, *query.shape[:2])
        if self._layout is not layout:
            self._layout, self._tables = layout, {}
        if plan not in self._tables:
            self._tables[plan] = KernelTables.make(layout, plan, self.device, self._num_processors)
        launches = _Launches(self._kernels, self._tables[plan], layer, spec)
        if key is not None and value is not None:
            launches.store(_with_dense_heads(key), _with_dense_heads(value))
        self._lap("attention: store")
        launches.slices(query, causal=False)
        self._lap("attention: shared")
        launches.slices(query, causal=True)
        self._lap("attention: causal")
        launches.pages(query)
        self._lap("attention: private")
        state = launches.merge(query.dtype, sinks)
        self._lap("attention: merge")
        return state

    def fill_fixed(
        self,
        layout: BatchLayout,
        num_packed: int,
        calls: Iterable[tuple[int, AttentionSpec, int]],
        plans: dict[FixedPlan, KernelTables],
    ) -> tuple[FixedPlan, ...]:
        """Plan a step before its first layer runs, for a CUDA graph; see ``KernelTables.make_fixed``.

        Args:
            layout: What to do.
            num_packed: Rows of each call's query, padding included.
            calls: Layer, spec and number of query heads of each call of attention.
            plans: The plans so far.

        Returns:
            What the step's plans are in ``plans``.
        """
        keys = [PlanKey.of(layout, layer, spec, num_packed, heads) for layer, spec, heads in calls]
        self._layout, self._tables, fixed = layout, {}, []
        for key in dict.fromkeys(keys):
            fixed.append(KernelTables.make_fixed(layout, key, self.device, self._num_processors, plans))
            self._tables[key] = plans[fixed[-1]]
        return tuple(fixed)

    def _lap(self, part: str) -> None:
        if self._stopwatch.enabled and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._stopwatch.lap(part)


def _with_dense_heads(x: Tensor) -> Tensor:
    """``x`` with the numbers of a head side by side, which the kernels take for granted."""
    return x if x.stride(2) == 1 else x.contiguous()


class _Launches:
    """The kernel launches of one layer of a step."""

    def __init__(self, kernels: ModuleType, tables: KernelTables, layer: int, spec: AttentionSpec) -> None:
        self._kernels, self._tables, self._spec = kernels, tables, spec
        self._shape = tables.shape
        self._states = tables.numerators, tables.highs, tables.totals
        self._bases = tables.bases[layer]
        cap = 1.0 if spec.soft_cap is None else spec.soft_cap
        self._cap_factor = spec.scale / cap
        self._score_factor = (spec.scale if spec.soft_cap is None else cap) * LOG2_E

    def store(self, key: Tensor, value: Tensor) -> None:
        """Store the step's keys and values."""
        targets = self._tables.targets
        if not len(targets):
            return
        strides = key.stride(0), key.stride(1), value.stride(0), value.stride(1)
        self._kernels.store_tokens[(len(targets),)](
            key, value, self._bases, targets, *strides, **self._shape.store_tokens()
        )

    def slices(self, query: Tensor, *, causal: bool) -> None:
        """Attend to shared segments, or each prefill chunk to its own."""
        items = self._tables.causal if causal else self._tables.shared
        if not len(items):
            return
        self._kernels.attend_slices[(len(items), self._shape.num_kv_heads)](
            query,
            self._bases,
            items,
            self._tables.first_seen,
            *self._states,
            query.stride(0),
            query.stride(1),
            self._score_factor,
            self._cap_factor,
            **self._shape.attend_slices(self._spec, causal=causal),
        )

    def pages(self, query: Tensor) -> None:
        """Attend each decoding row to its private pages."""
        tables = self._tables
        if not len(tables.private):
            return
        self._kernels.attend_pages[(len(tables.private), self._shape.num_kv_heads)](
            query,
            self._bases,
            tables.private,
            tables.pages,
            *self._states,
            query.stride(0),
            query.stride(1),
            self._score_factor,
            self._cap_factor,
            **self._shape.attend_pages(self._spec),
        )

    def merge(self, dtype: torch.dtype, sinks: Tensor | None) -> AttentionState:
        """Merge every row's partial states, and its sink."""
        tables, shape = self._tables, self._shape
        rows = tables.key.num_packed, shape.num_q_heads
        out = torch.empty(*rows, shape.layer.value_width, dtype=dtype, device=tables.bases.device)
        lse = torch.empty(rows, device=tables.bases.device)
        self._kernels.merge_states[(tables.key.num_packed, shape.num_kv_heads)](
            *self._states,
            tables.source_indptr,
            tables.sources,
            tables.totals if sinks is None else sinks.contiguous(),
            out,
            lse,
            self._score_factor,
            **shape.merge_states(self._spec),
        )
        return AttentionState(out, lse)
