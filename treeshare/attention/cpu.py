"""Tree attention on CPUs: plain matmuls over nodes, few passes over the scores.

Measured on two AVX-512 BF16 cores, 256 rows x 2048 keys: torch's flash attention 14 ms, this 3.4 ms. The
scores of one tile of rows stay in cache; the values have a column of ones, so that the second matmul gives
the denominator, too; keys are stored transposed. Partial results stay unnormalised, each with the maximum of
its scores, and are merged in a fixed order, root first, in float32.

A window or chunk is a mask of positions before the maximum is taken: segments and private pages that no row
sees are not read. A sink is where a row's running merge begins.

Shapes: ``T`` packed rows, ``H`` KV heads, ``G`` query heads per KV head, ``D`` width of a key, ``V`` of a
value, ``E`` extended value width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from treeshare.attention.api import ALL_FEATURES, AttentionBackend, AttentionSpec
from treeshare.attention.cpu_plan import CpuPlan, PrivatePages, SharedGroup
from treeshare.attention.layout import BatchLayout, CausalChunk
from treeshare.attention.state import AttentionState
from treeshare.config import SEGMENT_ALIGNMENT
from treeshare.kv import padded_length
from treeshare.stopwatch import OFF, Stopwatch

TILE_BYTES = 3 << 20
"""Scores of one tile of query rows; 192 rows x 2048 bfloat16 keys measured best."""


class _Accumulator:
    """Running merge of partial attention, as in online softmax.

    ``numerator`` is ``[T, H, G, E]`` and ``high``, the maximum score so far, ``[T, H, G, 1]``; both float32.
    Column ``V`` of the numerator is the denominator; all columns are scaled by ``exp(-high)``. The maximum of
    nothing is finite, so that nothing and nothing can be merged.
    """

    def __init__(self, query: Tensor, width: int, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self.numerator = torch.zeros(*query.shape[:3], width)
        self.high = torch.full((*query.shape[:3], 1), torch.finfo(torch.float32).min)

    def add_sinks(self, sinks: Tensor, num_rows: int, width: int) -> None:
        """Begin the first ``num_rows`` rows with a score ``[Q]`` whose value, of ``width``, is zero."""
        self.high[:num_rows] = sinks.view(1, *self.high.shape[1:])
        self.numerator[:num_rows, ..., width] = 1

    def add(self, kind: str, rows: slice | Tensor, numerator: Tensor, high: Tensor) -> None:
        """Merge a partial result for each of ``rows``, no row twice; ``kind`` names the stopwatch's part."""
        self._stopwatch.lap(f"attention: {kind}")
        old_numerator, old_high = self.numerator[rows], self.high[rows]
        new_high = torch.maximum(old_high, high)
        merged = old_numerator * (old_high - new_high).exp_()
        merged.addcmul_(numerator.float(), (high - new_high).exp_())
        self.numerator[rows] = merged
        self.high[rows] = new_high
        self._stopwatch.lap("attention: merge")

    def state(self, width: int, dtype: torch.dtype) -> AttentionState:
        """Normalise: ``out`` ``[T, H * G, width]`` in ``dtype`` and ``lse`` float32."""
        total = self.numerator[..., width : width + 1]
        lse = (self.high + total.log()).flatten(1)
        out = self.numerator[..., :width] / total.masked_fill(total == 0, 1)
        return AttentionState(out.flatten(1, 2).to(dtype), lse)


def _attend_dense(
    query: Tensor,
    keys_t: Tensor,
    values: Tensor,
    masked: Tensor | None,
    unseen: Tensor | None = None,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Unnormalised attention over dense keys.

    ``query`` is ``[B, M, D]``, ``keys_t`` ``[B, D, N]``, ``values`` ``[B, N, E]``.
    ``masked`` bool, broadcastable to ``[B, M, N']``, hides keys among the last ``N'``; each row must see one.
    ``unseen`` ``[n, m, N']`` hides keys among the first ``N'``, each entry for ``B / n`` heads and ``M / m``
    rows; with it a row may see none. Returns the numerator ``[B, M, E]`` and the maximum score ``[B, M, 1]``,
    in the dtype of ``query``.
    """
    scores = torch.bmm(query, keys_t)
    if soft_cap is not None:
        scores.tanh_().mul_(soft_cap)
    if masked is not None:
        scores[..., -masked.shape[-1] :].masked_fill_(masked, -torch.inf)
    if unseen is not None:
        num_nodes, num_rows, num_keys = unseen.shape
        by_node = scores.view(num_nodes, -1, num_rows, scores.shape[1] // num_rows, scores.shape[2])
        by_node[..., :num_keys].masked_fill_(unseen[:, None, :, None], -torch.inf)
    high = scores.amax(-1, keepdim=True)
    if unseen is not None:
        high.clamp_(min=torch.finfo(high.dtype).min)
    return torch.bmm(scores.sub_(high).exp_(), values), high


class CpuAttention(AttentionBackend):
    """Grouped matmuls; see the module's text and ``AttentionBackend``.

    Args:
        stopwatch: Is told how long each kind of node took.
    """

    name = "cpu"
    features = ALL_FEATURES

    def __init__(self, stopwatch: Stopwatch = OFF) -> None:
        self._stopwatch = stopwatch
        self._layout: BatchLayout | None = None
        self._plans: dict[tuple[int | None, int | None, int], CpuPlan] = {}

    def end_step(self) -> None:
        """See ``AttentionBackend.end_step``."""
        self._layout = None
        self._plans = {}

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
        plan = self._plan(layout, spec, layout.store.pool_number(layer))
        layout.write(layer, key, value)
        self._stopwatch.lap("attention: store")
        num_rows, num_q_heads, head_dim = query.shape
        shape = layout.store.geometry.layers[layer]
        factor = spec.scale if spec.soft_cap is None else spec.scale / spec.soft_cap
        scaled = (query * factor).view(num_rows, shape.num_heads, num_q_heads // shape.num_heads, head_dim)
        total = _Accumulator(scaled, shape.stored_width, self._stopwatch)
        if sinks is not None:
            total.add_sinks(sinks, layout.num_rows, shape.value_width)
        call = _Call(total, scaled, layer, spec.soft_cap)
        for group in plan.shared:
            call.add_shared(group)
        for chunk in layout.causal:
            call.add_causal(chunk, plan.first_seen)
        if plan.private is not None:
            call.add_private(layout, plan.private)
        state = total.state(shape.value_width, query.dtype)
        self._stopwatch.lap("attention: merge")
        return state

    def _plan(self, layout: BatchLayout, spec: AttentionSpec, pool: int) -> CpuPlan:
        """The step's plan for a layer's window and pool; where a window hides no key, as without one."""
        if self._layout is not layout:
            self._layout, self._plans = layout, {}
        key = spec.window, spec.chunk, pool
        if key not in self._plans:
            first_seen = spec.first_seen(layout.positions)
            if first_seen.any():
                self._plans[key] = CpuPlan.of(layout, first_seen, pool=pool)
            else:
                whole = self._plans.get((None, None, pool)) or CpuPlan.of(layout, pool=pool)
                self._plans[key] = self._plans[None, None, pool] = whole
        return self._plans[key]


@dataclass(frozen=True, slots=True)
class _Call:
    """The parts of a layer's attention.

    Attributes:
        total: Where they are merged.
        query: ``[T, H, G, D]``, scaled; with a soft cap so that the scores are its hyperbolic tangents'.
        layer: Of the store.
        soft_cap: See ``AttentionSpec``.
    """

    total: _Accumulator
    query: Tensor
    layer: int
    soft_cap: float | None

    def add_shared(self, group: SharedGroup) -> None:
        """Merge what rows see of shared segments."""
        num_nodes = group.last - group.first
        _, heads, group_size, head_dim = self.query.shape
        nodes, first_key = slice(group.first, group.last), group.first_key
        keys_t = group.block.keys_t[self.layer][nodes, :, :, first_key:].flatten(0, 1)
        values = group.block.values[self.layer][nodes, :, first_key:].flatten(0, 1)
        gathered = self.query[group.rows if isinstance(group.rows, slice) else group.rows.flatten()]
        # [nodes, M, H, G, D] -> [nodes * H, M * G, D]
        stacked = gathered.view(num_nodes, group.num_padded, heads, group_size, head_dim).transpose(1, 2)
        stacked = stacked.reshape(num_nodes * heads, group.num_padded * group_size, head_dim)
        masked, unseen = group.padding, group.unseen
        if masked is not None:
            masked = masked.repeat_interleave(heads, dim=0).unsqueeze(1)
        row_bytes = keys_t.shape[0] * keys_t.shape[2] * stacked.element_size()
        parts = []
        for tile in _tiles(stacked.shape[1], row_bytes, multiple=1 if unseen is None else group_size):
            hidden = unseen
            if unseen is not None:
                hidden = unseen[:, tile.start // group_size : tile.stop // group_size]
            parts.append(_attend_dense(stacked[:, tile], keys_t, values, masked, hidden, self.soft_cap))
        numerator, high = (
            torch.cat(column, dim=1) if len(parts) > 1 else column[0] for column in zip(*parts, strict=True)
        )

        def unstack(stacked: Tensor) -> Tensor:
            by_node = stacked.view(num_nodes, heads, group.num_padded, group_size, -1).transpose(1, 2)
            flat = by_node.reshape(num_nodes * group.num_padded, heads, group_size, -1)
            return flat if group.valid is None else flat[group.valid]

        rows = group.rows if isinstance(group.rows, slice) else group.rows.flatten()[group.valid]
        self.total.add("shared", rows, unstack(numerator), unstack(high))

    def add_causal(self, chunk: CausalChunk, first_seen: Tensor | None) -> None:
        """Merge what the rows of a prefill chunk see of their own segment."""
        _, heads, group_size, head_dim = self.query.shape
        block, index, start = chunk.segment.block, chunk.segment.index, chunk.segment.start
        num_keys = padded_length(chunk.end)
        row_bytes = heads * num_keys * self.query.element_size()
        for tile in _tiles((chunk.last_row - chunk.first_row) * group_size, row_bytes, multiple=group_size):
            first, last = tile.start // group_size, tile.stop // group_size
            rows = slice(chunk.first_row + first, chunk.first_row + last)
            num_seen, first_key = padded_length(chunk.start + last), 0
            own = torch.arange(chunk.start + first, chunk.start + last)
            masked = torch.arange(chunk.start, num_seen) > own.repeat_interleave(group_size).unsqueeze(1)
            if first_seen is not None and bool((first_seen[rows] > start).any()):
                oldest = (first_seen[rows] - start).repeat_interleave(group_size).unsqueeze(1)
                first_key = max(int(oldest.min()), 0) // SEGMENT_ALIGNMENT * SEGMENT_ALIGNMENT
                place = torch.arange(first_key, num_seen)
                masked = (place < oldest) | (place > own.repeat_interleave(group_size).unsqueeze(1))
            numerator, high = _attend_dense(
                self.query[rows].transpose(0, 1).reshape(heads, -1, head_dim),
                block.keys_t[self.layer][index, :, :, first_key:num_seen],
                block.values[self.layer][index, :, first_key:num_seen],
                masked,
                soft_cap=self.soft_cap,
            )
            shape = (heads, last - first, group_size, -1)
            numerator, high = (part.view(shape).transpose(0, 1) for part in (numerator, high))
            self.total.add("causal", rows, numerator, high)

    def add_private(self, layout: BatchLayout, private: PrivatePages) -> None:
        """Merge what decoding rows see of their private pages."""
        pool, num_pages = layout.store.pool_of(self.layer), private.num_pages
        _, heads, group_size, head_dim = self.query.shape
        places: list[tuple[slice | Tensor, slice]] = []
        if num_pages:
            places.append((slice(num_pages), slice(num_pages)))
        if len(private.repeated):
            places.append((private.repeated, slice(num_pages, None)))
        parts = [
            _attend_dense(
                self.query[private.rows[place]].view(-1, group_size, head_dim),
                pool.keys[self.layer][pages].flatten(0, 1).transpose(1, 2),
                pool.values[self.layer][pages].flatten(0, 1),
                private.unseen[place].repeat_interleave(heads, dim=0).unsqueeze(1),
                soft_cap=self.soft_cap,
            )
            for pages, place in places
        ]
        numerator, high = (
            torch.cat(column).view(len(private.rows), heads, group_size, -1)
            for column in zip(*parts, strict=True)
        )
        for attended, rows in private.ordinals:
            self.total.add("private", rows, numerator[attended], high[attended])


def _tiles(num_queries: int, query_bytes: int, multiple: int = 1) -> list[slice]:
    """Cut ``num_queries`` rows, ``query_bytes`` of scores each, into tiles of about ``TILE_BYTES``."""
    size = max(TILE_BYTES // query_bytes, SEGMENT_ALIGNMENT)
    size = -(-size // multiple) * multiple
    return [slice(start, min(start + size, num_queries)) for start in range(0, num_queries, size)]
