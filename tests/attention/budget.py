"""The precision budget of DESIGN section 5 and the forests that attention is tested on."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from treeshare.attention import AttentionSpec, DecodeRow, PrefillChunk, build_layout, depth_first
from treeshare.kv import KVGeometry, KVStore, LayerKV


@dataclass(frozen=True)
class Case:
    """A forest, its packed rows, and what each row must see.

    ``parents`` and ``lengths`` describe the nodes in preorder; ``decodes`` are (node, private tokens) pairs;
    ``chunk`` tokens at the end of each node in ``prefilled`` are computed in the step itself.
    """

    parents: tuple[int, ...]
    lengths: tuple[int, ...]
    decodes: tuple[tuple[int, int], ...]
    prefilled: tuple[int, ...] = ()
    chunk: int = 37
    num_kv_heads: int = 2
    group_size: int = 3
    head_dim: int = 64
    dtype: torch.dtype = torch.float32
    page_size: int = 16
    sharing: str = "tree"
    score_scale: float = 1.0
    value_dim: int | None = None  # None: as wide as keys
    layer: int = 0  # layers of another shape before it
    window: int | None = None
    window_chunk: int | None = None
    soft_cap: float | None = None
    has_sinks: bool = False

    @property
    def value_width(self):
        return self.value_dim or self.head_dim

    @property
    def spec(self):
        return AttentionSpec(
            scale=self.head_dim**-0.5,
            window=self.window,
            chunk=self.window_chunk,
            soft_cap=self.soft_cap,
            has_sinks=self.has_sinks,
        )


_ORACLES: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = {}


class Forest:
    """Builds the store, the layout and the step's inputs of a case, and the oracle's view of them."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case = case
        self.rng = torch.Generator().manual_seed(seed)
        layer = LayerKV(num_heads=case.num_kv_heads, key_width=case.head_dim, value_width=case.value_width)
        other = LayerKV(num_heads=case.num_kv_heads + 1, key_width=16, value_width=48)
        geometry = KVGeometry(layers=(*(other,) * case.layer, layer), dtype=case.dtype)
        num_pages = sum(length // case.page_size + 1 for _, length in case.decodes)
        self.store = KVStore(
            geometry, budget_bytes=1 << 40, page_size=case.page_size, max_pages=num_pages + 1, poison=True
        )
        self.segments, self.node_kv = [], []
        self._build_segments()
        self._build_decodes()
        chunks = [PrefillChunk(self.segments[n], self._first_new(n), case.lengths[n]) for n in case.prefilled]
        self.chunks, order = depth_first(chunks, self.rows)
        self.rows = [self.rows[i] for i in order]
        self.row_kv = [self.row_kv[i] for i in order]
        self.layout = build_layout(self.store, self.chunks, self.rows, sharing=case.sharing)
        self._build_inputs()

    def _random(self, *shape):
        return torch.randn(*shape, generator=self.rng).mul(self.case.score_scale).to(self.case.dtype)

    def _kv(self, n):
        case = self.case
        return tuple(self._random(n, case.num_kv_heads, dim) for dim in (case.head_dim, case.value_width))

    def _first_new(self, node):
        return max(self.case.lengths[node] - self.case.chunk, 0)

    def _build_segments(self):
        case = self.case
        blocks = {}
        for length in case.lengths:
            blocks[length] = blocks.get(length, 0) + 1
        for length, count in blocks.items():
            self.store.segments.reserve(length, count)
        for order, (parent, length) in enumerate(zip(case.parents, case.lengths, strict=True)):
            above = self.segments[parent] if parent >= 0 else None
            start = above.end if above else 0
            segment = self.store.segments.new(start=start, num_tokens=length, order=order, parent=above)
            keys, values = self._kv(length)
            written = self._first_new(order) if order in case.prefilled else length
            self.store.segments.write(case.layer, segment, 0, keys[:written], values[:written])
            segment.num_written = written
            self.segments.append(segment)
            self.node_kv.append((keys, values))

    def _build_decodes(self):
        self.rows, self.row_kv = [], []
        for node, length in self.case.decodes:
            pages = self.store.tables.new(length // self.case.page_size + 1)
            keys, values = self._kv(length + 1)
            for token in range(length):
                page = torch.tensor([pages.pages[0][token // self.case.page_size].index])
                offset = torch.tensor([token % self.case.page_size])
                self.store.pools[0].write(
                    self.case.layer, page, offset, keys[token : token + 1], values[token : token + 1]
                )
            self.rows.append(DecodeRow(self.segments[node], pages, length))
            self.row_kv.append((keys, values))

    def _build_inputs(self):
        """The packed query, key and value with three rows of padding."""
        case, layout = self.case, self.layout
        num_packed = layout.num_rows + 3
        self.query = self._random(num_packed, case.num_kv_heads * case.group_size, case.head_dim)
        self.key, self.value = self._kv(num_packed)
        self.sinks = None
        if case.has_sinks:  # some that outweigh all keys, some that nobody notices
            self.sinks = torch.linspace(-3, 6, self.query.shape[1]) * case.score_scale
        for chunk in layout.causal:
            keys, values = self.node_kv[chunk.segment.order]
            self.key[chunk.first_row : chunk.last_row] = keys[chunk.start : chunk.end]
            self.value[chunk.first_row : chunk.last_row] = values[chunk.start : chunk.end]
        for row, (keys, values) in zip(layout.decode_rows.tolist(), self.row_kv, strict=True):
            self.key[row], self.value[row] = keys[-1], values[-1]

    @functools.cached_property
    def seen(self):
        """Every row's keys and values."""
        seen = [None] * self.layout.num_rows
        for chunk in self.layout.causal:
            node = chunk.segment.order
            keys, values = self.node_kv[node]
            for row in range(chunk.first_row, chunk.last_row):
                own = chunk.start + row - chunk.first_row + 1
                seen[row] = self._concatenate(self.case.parents[node], keys[:own], values[:own])
        for row, source, (keys, values) in zip(
            self.layout.decode_rows.tolist(), self.layout.decodes, self.row_kv, strict=True
        ):
            seen[row] = self._concatenate(source.segment.order, keys, values)
        return seen

    def _concatenate(self, node, keys, values):
        parts = [(keys, values)]
        while node >= 0:
            parts.insert(0, self.node_kv[node])
            node = self.case.parents[node]
        return torch.cat([k for k, _ in parts]), torch.cat([v for _, v in parts])

    def oracle(self, dtype=torch.float64):
        """Brute force in ``dtype``, independent of every backend and of the store: ``out`` and ``lse``.

        In a lower dtype it is what eager attention does: matmuls of many rows, softmax in float32. It takes
        longer than any backend, so what it found for these very numbers is kept.
        """
        key = self._digest(dtype)
        if key not in _ORACLES:
            _ORACLES[key] = self._brute_force(dtype)
        return _ORACLES[key]

    def _digest(self, dtype):
        """Of all that the oracle reads: not how keys are stored, or shared."""
        case = replace(self.case, sharing="tree", page_size=1, layer=0)
        causal = [(chunk.segment.order, chunk.start, chunk.first_row) for chunk in self.layout.causal]
        decoding = [row.segment.order for row in self.layout.decodes], self.layout.decode_rows.tolist()
        digest = hashlib.blake2b(repr((dtype, case, causal, decoding)).encode())
        for tensor in (self.query, *(part for pair in (*self.node_kv, *self.row_kv) for part in pair)):
            digest.update(tensor.contiguous().view(torch.uint8).numpy())
        return digest.digest()

    def _brute_force(self, dtype):
        case = self.case
        out = torch.zeros(*self.query.shape[:2], case.value_width, dtype=torch.float64)
        lse = torch.full(self.query.shape[:2], -torch.inf, dtype=torch.float64)
        every_query = self.query.to(dtype).transpose(0, 1)
        many = torch.cat([every_query] * (16 // every_query.shape[1] + 1), dim=1)
        for row, (keys, values) in enumerate(self.seen):
            own, first = len(keys) - 1, 0
            if case.window is not None:
                first = max(first, own + 1 - case.window)
            if case.window_chunk is not None:
                first = max(first, own // case.window_chunk * case.window_chunk)
            keys, values = keys[first:], values[first:]
            query, place = (every_query[:, row : row + 1], 0) if dtype == torch.float64 else (many, row)
            keys, values = (
                x.to(dtype).transpose(0, 1).repeat_interleave(self.case.group_size, 0) for x in (keys, values)
            )
            scores = (query @ keys.transpose(1, 2)) * case.head_dim**-0.5
            if case.soft_cap is not None:
                scores = case.soft_cap * torch.tanh(scores / case.soft_cap)
            if self.sinks is not None:
                sinks = self.sinks.to(dtype).view(-1, 1, 1).expand(*scores.shape[:2], 1)
                scores = torch.cat([scores, sinks], -1)
                values = torch.cat([values, torch.zeros_like(values[:, :1])], 1)
            lse[row] = scores[:, place].double().logsumexp(-1)
            weights = scores.to(torch.promote_types(dtype, torch.float32)).softmax(-1).to(dtype)
            out[row] = (weights @ values)[:, place].double()
        return out, lse

    def give_back_unseen(self, *, segments=True):
        """Pages that their row does not see are gone; in them, and in segments that no row sees, is NaN."""
        case, pool = self.case, self.store.pool_of(self.case.layer)
        first_seen = case.spec.first_seen(self.layout.positions)
        for row, source in zip(self.layout.decode_rows.tolist(), self.layout.decodes, strict=True):
            pages = source.pages.pages[0]
            for number in range(max(int(first_seen[row]) - source.segment.end, 0) // case.page_size):
                pool.keys[case.layer][pages[number].index] = torch.nan
                pool.values[case.layer][pages[number].index] = torch.nan
                pages[number] = None
        seen = {chunk.segment.order for chunk in self.layout.causal}
        for segment, first, last in self.layout.slices:
            if first_seen[first:last].min() < segment.end:
                seen.add(segment.order)
        for segment in self.segments:
            if segments and segment.order not in seen:
                segment.keys(case.layer)[:] = torch.nan
                segment.values(case.layer)[:] = torch.nan

    def attend(self, backend):
        """The backend's result for the step."""
        return backend.attend(
            self.query,
            self.key,
            self.value,
            layer=self.case.layer,
            layout=self.layout,
            spec=self.case.spec,
            sinks=self.sinks,
        )


def assert_within_budget(forest: Forest, state) -> None:
    """At most twice the error of plain eager attention in the same dtype, plus the output's rounding."""
    dtype, num_rows = forest.case.dtype, forest.layout.num_rows
    exact_out, exact_lse = forest.oracle()
    eager_out, eager_lse = forest.oracle(dtype)
    eps = torch.finfo(dtype).eps
    out_error = (state.out.double() - exact_out)[:num_rows].abs().max().item()
    out_budget = 2 * (eager_out - exact_out).abs().max().item() + eps * exact_out.abs().max().item()
    lse_error = (state.lse.double() - exact_lse)[:num_rows].abs().max().item()
    lse_budget = 2 * (eager_lse - exact_lse)[:num_rows].abs().max().item() + eps * max(
        1.0, exact_lse[:num_rows].abs().max().item()
    )
    assert np.isfinite(out_error), "non-finite output"
    assert out_error <= out_budget, f"out: error {out_error:.3g}, budget {out_budget:.3g}"
    assert lse_error <= lse_budget, f"lse: error {lse_error:.3g}, budget {lse_budget:.3g}"
    assert torch.equal(state.out[num_rows:].double(), torch.zeros(3, *exact_out.shape[1:]).double())
    assert torch.all(state.lse[num_rows:] == -torch.inf)
