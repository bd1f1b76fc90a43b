"""The plan of a step for the Triton kernels: tables of work items on the device, as one copy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from treeshare.attention.triton.arrays import PlanKey, StepArrays
from treeshare.devices import upload

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.attention.layout import BatchLayout
    from treeshare.attention.triton.shape import KernelShape

ALIGNMENT = 64
"""Tables begin at multiples of this many int32, wherever they lie, so that no kernel is compiled twice."""


@dataclass(frozen=True, kw_only=True)
class KernelTables:
    """A layout as tables on the device, made once a step for all layers that agree; int32 but for addresses.

    Attributes:
        layout: The layout that they were made from.
        key: What else they depend on.
        memory: All tables, one after another.
        bases: ``[L, B, 2]`` int64: where the keys and the values of each block begin; the first is the pool.
        targets: ``[num_rows, TargetColumn]``: where each row's token is stored.
        first_seen: ``[T]``: position of the first key that each row sees; empty without a window.
        shared: ``[n, SliceColumn]``: work items of ``attend_slices``.
        causal: Likewise, for prefill chunks over their own segment.
        private: ``[n, PageColumn]``: work items of ``attend_pages``.
        pages: Page numbers of all decoding rows.
        source_indptr: ``[T + 1]``: where each row's entries of ``sources`` begin.
        sources: ``[n, SourceColumn]``: what ``merge_states`` merges.
        numerators: ``[S, Q, V]`` float32: scratch for partial states.
        highs: ``[S, Q]`` float32, likewise.
        totals: ``[S, Q]`` float32, likewise.
    """

    layout: BatchLayout
    key: PlanKey
    memory: Tensor
    bases: Tensor
    targets: Tensor
    first_seen: Tensor
    shared: Tensor
    causal: Tensor
    private: Tensor
    pages: Tensor
    source_indptr: Tensor
    sources: Tensor
    numerators: Tensor
    highs: Tensor
    totals: Tensor

    @property
    def shape(self) -> KernelShape:
        """What the kernels are compiled for."""
        return self.key.shape

    @classmethod
    def make(
        cls,
        layout: BatchLayout,
        key: PlanKey,
        device: torch.device,
        num_processors: int,
        *,
        with_scratch: bool = True,
    ) -> KernelTables:
        """Plan a step.

        Args:
            layout: What to do.
            key: For which layers.
            device: Of the tables.
            num_processors: Multiprocessors to keep busy.
            with_scratch: Reserve memory for partial states; a plan without it can be inspected, not run.
        """
        arrays = StepArrays(layout, key, num_processors)
        scratch = device if with_scratch else torch.device("meta")
        return cls._uploaded(layout, key, arrays.named(), arrays.num_slots, device, scratch)

    @classmethod
    def make_fixed(
        cls,
        layout: BatchLayout,
        key: PlanKey,
        device: torch.device,
        num_processors: int,
        plans: dict[FixedPlan, KernelTables],
    ) -> FixedPlan:
        """Plan a step in the memory of an earlier plan of the same size, where a CUDA graph reads it.

        Args:
            layout: What to do.
            key: For which layers.
            device: Of the tables.
            num_processors: Multiprocessors to keep busy.
            plans: The plans so far. That of this key and size is overwritten, or a new one is added.

        Returns:
            What it is in ``plans``.
        """
        arrays = StepArrays(layout, key, num_processors)
        named, num_slots = arrays.padded()
        fixed = (key, num_slots, *(table.shape for table in named.values()))
        if fixed in plans:
            upload(_flat(named)[0], device, out=plans[fixed].memory)
            plans[fixed] = replace(plans[fixed], layout=layout)
        else:
            plans[fixed] = cls._uploaded(layout, key, named, num_slots, device, device)
        return fixed

    @classmethod
    def _uploaded(
        cls,
        layout: BatchLayout,
        key: PlanKey,
        named: dict[str, NDArray[Any]],
        num_slots: int,
        device: torch.device,
        scratch: torch.device,
    ) -> KernelTables:
        """The tables of a plan, ``named``, on ``device``, with scratch memory on ``scratch``."""
        flat, starts = _flat(named)
        memory = upload(flat, device)
        views = {}
        for start, (name, table) in zip(starts, named.items(), strict=True):
            part = memory[start : start + table.nbytes // 4]
            views[name] = (part.view(torch.int64) if table.itemsize == 8 else part).view(table.shape)
        states = num_slots, key.shape.num_q_heads
        return cls(
            layout=layout,
            key=key,
            memory=memory,
            numerators=torch.empty(*states, key.shape.layer.value_width, device=scratch),
            highs=torch.empty(states, device=scratch),
            totals=torch.empty(states, device=scratch),
            **views,
        )


FixedPlan = tuple[Any, ...]
"""A plan's key, its number of partial states, its tables' shapes: they fix all grids and addresses."""


def _flat(named: dict[str, NDArray[Any]]) -> tuple[NDArray[np.int32], list[int]]:
    """The tables one after another as int32, and where each begins."""
    sizes = [-(-table.nbytes // 4 // ALIGNMENT) * ALIGNMENT for table in named.values()]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    flat = np.zeros(sum(sizes), np.int32)
    for start, table in zip(starts, named.values(), strict=True):
        flat[start : start + table.nbytes // 4] = table.reshape(-1).view(np.int32)
    return flat, starts
