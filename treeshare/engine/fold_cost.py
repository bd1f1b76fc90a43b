"""The cost of a tree node on this machine, which decides which nodes are folded."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from pydantic import TypeAdapter
from torch.nn import functional

from treeshare.attention import AttentionSpec, DecodeRow, build_layout, make_backend
from treeshare.config import ARITHMETIC, EngineConfig, FoldCost
from treeshare.engine.machine import cached
from treeshare.kv import KVStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PretrainedConfig

    from treeshare.kv import KVGeometry
    from treeshare.models import LoadedModel

_MEASURED = ("native", "cpu")
"""Backends whose nodes are timed; for others the defaults stand."""

_FEW_ROWS, _MANY_ROWS = 8, 256
_PATH_TOKENS, _PATH_NODES = 288, 9
_REPEATS = 7

_LAUNCH_COSTS, _MERGE_COSTS = (8, 128, 2048), (1, 16)
"""To which measured costs are rounded, in tokens. Only the order of magnitude is measured: five tries on a
quiet machine gave 0 to 56 and 0 to 53. A node costs little in the compiled kernel, by matmuls 128 to 4000."""

_STEPS_PER_PREFILL = 128
"""Decoding steps over which a token's prefill is spread: the length of a usual completion."""


def fold_cost_of(loaded: LoadedModel, engine: EngineConfig) -> FoldCost:
    """What a node costs a model here: ``fold_cost_here``."""
    return fold_cost_here(loaded.geometry, loaded.model.config, engine, loaded.device, loaded.level)


def fold_cost_here(
    geometry: KVGeometry,
    config: PretrainedConfig,
    engine: EngineConfig,
    device: torch.device | str = "cpu",
    level: str | None = None,
) -> FoldCost:
    """What a node costs here, from the cache or measured now, in about a third of a second.

    Args:
        geometry: Of the model's KV; where layers differ, the first stands for all.
        config: The model's configuration.
        engine: Its backend and number of rows are used.
        device: Where the KV lies; only the CPU is measured.
        level: Whose kernels compute attention; None: the process's, ``kernel_level()``.
    """
    backend = make_backend(engine.backend, geometry, device=device, level=level).name
    if backend not in _MEASURED:
        return FoldCost(max_rows=engine.max_num_seqs)
    first = geometry.layers[0]
    key = {
        "heads": [first.num_heads, config.num_attention_heads, first.key_width, config.hidden_size],
        "dtype": str(geometry.dtype),
        "backend": backend,
        "arithmetic": ARITHMETIC,
        **({"level": level} if level else {}),
        **({"value_width": first.value_width} if first.value_width != first.key_width else {}),
    }
    cost = cached("fold_cost", key, TypeAdapter(FoldCost), lambda: measure(geometry, config, engine, level))
    return replace(cost, max_rows=engine.max_num_seqs)


def measure(
    geometry: KVGeometry, config: PretrainedConfig, engine: EngineConfig, level: str | None = None
) -> FoldCost:
    """Time a layer's attention over one path, whole and cut into nodes, for few rows and for many.

    The difference is what nodes cost; how it grows with the rows is the merge. A backend that carries one
    result down the path (``keeps_bits``) merges nothing: there, growth is noise. A stored token costs the
    time to read its KV, its prefill, and as much again for the memory that it holds. Times are minima, and
    the costs are rounded to an order of magnitude.
    """
    one_layer = replace(geometry, layers=geometry.layers[:1])
    extra = [
        max(cut - whole, 0.0) / (_PATH_NODES - 1)
        for rows in (_FEW_ROWS, _MANY_ROWS)
        for whole, cut in [_path_seconds(one_layer, config.num_attention_heads, engine, rows, level)]
    ]
    merge_s = max(extra[1] - extra[0], 0.0) / (_MANY_ROWS - _FEW_ROWS)
    if make_backend(engine.backend, geometry, level=level).keeps_bits:
        merge_s = 0.0
    launch_s = max(extra[0] - merge_s * _FEW_ROWS, 0.0)
    token_s = 2 * (_read_seconds(one_layer) + _prefill_seconds(config, geometry.dtype) / _STEPS_PER_PREFILL)
    return FoldCost(
        launch_cost=_nearest(launch_s / token_s, _LAUNCH_COSTS),
        merge_cost=_nearest(merge_s / token_s, _MERGE_COSTS),
    )


def _path_seconds(
    geometry: KVGeometry, num_heads: int, engine: EngineConfig, rows: int, level: str | None
) -> list[float]:
    """Seconds of ``rows`` rows that attend to a path of one node, and to the same tokens in several."""
    backend = make_backend(engine.backend, geometry, level=level)
    spec = AttentionSpec(scale=1.0)
    (shape,) = geometry.layers
    query = torch.ones(rows, num_heads, shape.key_width, dtype=geometry.dtype)
    key = torch.ones(rows, shape.num_heads, shape.key_width, dtype=geometry.dtype)
    value = torch.ones(rows, shape.num_heads, shape.value_width, dtype=geometry.dtype)
    calls: list[Callable[[], object]] = []
    for num_nodes in (1, _PATH_NODES):
        store = KVStore(geometry, budget_bytes=1 << 40, page_size=engine.page_size, max_pages=rows + 1)
        segment = None
        tokens = _PATH_TOKENS // num_nodes
        for order in range(num_nodes):
            start = order * tokens
            segment = store.segments.new(start=start, num_tokens=tokens, order=order, parent=segment)
            segment.num_written = tokens
        assert segment is not None
        decoding = [DecodeRow(segment, store.tables.new(1), 0) for _ in range(rows)]

        def attend(store: KVStore = store, decoding: list[DecodeRow] = decoding) -> None:
            layout = build_layout(store, [], decoding)
            backend.attend(query, key, value, layer=0, layout=layout, spec=spec)

        calls.append(attend)
    return _min_seconds(calls)


def _read_seconds(geometry: KVGeometry) -> float:
    """Seconds to read a token's keys and values of one layer from memory."""
    memory = torch.zeros(1 << 22)
    return _min_seconds([memory.sum])[0] / memory.nbytes * geometry.bytes_per_token


def _prefill_seconds(config: PretrainedConfig, dtype: torch.dtype) -> float:
    """Seconds of a prompt token in a layer of ``12 * hidden_size**2`` weights: 3 times a matmul with 4."""
    size = config.hidden_size
    rows, weight = torch.zeros(_MANY_ROWS, size, dtype=dtype), torch.zeros(4 * size, size, dtype=dtype)
    return _min_seconds([lambda: functional.linear(rows, weight)])[0] * 3 / _MANY_ROWS


def _min_seconds(calls: list[Callable[[], object]]) -> list[float]:
    """The minimum time of each call; they take turns, after a warm-up round."""
    minima = [float("inf")] * len(calls)
    for repeat in range(_REPEATS + 1):
        for i, call in enumerate(calls):
            started = time.perf_counter()
            call()
            if repeat:
                minima[i] = min(minima[i], time.perf_counter() - started)
    return minima


def _nearest(ratio: float, costs: tuple[int, ...]) -> int:
    """The cost that differs from a measured one by the smallest factor."""
    return min(costs, key=lambda cost: abs(math.log(cost / max(ratio, 1e-9))))
