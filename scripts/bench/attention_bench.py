"""Attention of one layer and one step by every CPU backend, beside torch's own kernels."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from attention_cases import DIM, GROUP, HEADS
from roof import BF16, median_seconds

from treeshare.attention import AttentionSpec, DecodeRow, PrefillChunk, build_layout, make_backend
from treeshare.kv import KVGeometry, KVStore
from treeshare.native import kernel_level

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from attention_cases import Case
    from roof import Roof

    from treeshare.attention import AttentionBackend, BatchLayout

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class AttentionInputs:
    """Random KV of a case in a store, and a step's tensors."""

    def __init__(self, case: Case, dtype: torch.dtype = BF16) -> None:
        page_size = 64
        pages = case.private // page_size + 1
        geometry = KVGeometry.uniform(num_layers=1, num_kv_heads=HEADS, head_dim=DIM, dtype=dtype)
        self.store = KVStore(
            geometry, budget_bytes=1 << 40, page_size=page_size, max_pages=case.rows * pages + 1
        )
        root_tokens = max(case.root, 1)
        root = self.store.segments.new(start=0, num_tokens=root_tokens, order=0, parent=None)
        leaves = [root]
        if case.leaves:
            self.store.segments.reserve(case.leaf, case.leaves)
            leaves = [
                self.store.segments.new(start=root_tokens, num_tokens=case.leaf, order=1 + i, parent=root)
                for i in range(case.leaves)
            ]
        for segment in {root, *leaves}:
            for tensor in (*segment.block.keys_t, *segment.block.values):
                tensor.normal_()
        chunks, rows = [], []
        if case.causal:
            chunks = [PrefillChunk(root, case.root - case.rows, case.root)]
        else:
            rows = [
                DecodeRow(
                    leaves[i * len(leaves) // case.rows],
                    self.store.tables.new(pages),
                    case.private,
                )
                for i in range(case.rows)
            ]
            for tensor in (*self.store.pools[0].keys.values(), *self.store.pools[0].values.values()):
                tensor.normal_()
        self.layout: BatchLayout = build_layout(self.store, chunks, rows)
        self.query = torch.randn(case.rows, HEADS * GROUP, DIM, dtype=dtype)
        self.key = torch.randn(case.rows, HEADS, DIM, dtype=dtype)

    def attend(self, backend: AttentionBackend) -> None:
        """One layer of one step."""
        backend.attend(
            self.query, self.key, self.key, layer=0, layout=self.layout, spec=AttentionSpec(scale=DIM**-0.5)
        )


def yardsticks(case: Case) -> tuple[Callable[[], None], Callable[[], None]]:
    """Flash attention, and plain ``bmm``, on a case's parts."""
    flash, dense = [], []
    for number, rows, keys, causal in case.parts:
        key = torch.randn(number, HEADS, keys, DIM, dtype=BF16)
        query = torch.randn(number, HEADS, rows * GROUP, DIM, dtype=BF16)
        if causal:  # a query head's rows must be its own: keys are repeated
            wide = key.repeat_interleave(GROUP, dim=1)
            flash.append((torch.randn(number, HEADS * GROUP, rows, DIM, dtype=BF16), wide, True))
        else:
            flash.append((query, key, False))
        flat = key.flatten(0, 1)
        dense.append((query.flatten(0, 1), flat.transpose(1, 2).contiguous(), flat))

    def run_flash() -> None:
        for query, key, causal in flash:
            _flash(query, key, key, 0.0, causal)

    def run_bmm() -> None:
        for query, keys_t, values in dense:
            torch.bmm(torch.bmm(query, keys_t), values)

    return run_flash, run_bmm


def measure_attention(cases: Sequence[Case], roof: Roof, repeats: int) -> list[dict[str, Any]]:
    """Every case by every backend, and by the yardsticks."""
    geometry = KVGeometry.uniform(num_layers=1, num_kv_heads=HEADS, head_dim=DIM, dtype=BF16)
    names = ["native", "cpu"] if kernel_level() != "none" else ["cpu"]
    records = []
    for case in cases:
        inputs = AttentionInputs(case)
        runs = [partial(inputs.attend, make_backend(name, geometry)) for name in names]
        flash, bmm, *ours = median_seconds([*yardsticks(case), *runs], repeats)
        for name, took in zip(names, ours, strict=True):
            records.append(
                {
                    "case": case.name,
                    "backend": name,
                    "ms": took * 1e3,
                    "gflops": case.flops / took / 1e9,
                    "of_matmul_rate": case.flops / roof.flops / took,
                    "of_roof": roof.seconds(case.flops, case.num_bytes) / took,
                    "times_flash": flash / took,
                    "of_bmm": bmm / took,
                    "flash_ms": flash * 1e3,
                    "bmm_ms": bmm * 1e3,
                }
            )
    return records
