"""The definition of tree attention: one row at a time over its concatenated path, in float64."""

import torch
from torch import Tensor

from treeshare.attention.api import ALL_FEATURES, AttentionBackend, AttentionSpec
from treeshare.attention.layout import BatchLayout, DecodeRow
from treeshare.attention.state import AttentionState
from treeshare.stopwatch import OFF, Stopwatch


class ReferenceAttention(AttentionBackend):
    """Plain softmax attention over keys gathered row by row; slow, and right by inspection.

    Args:
        dtype: Of the computation.
        stopwatch: Is told how long a call took.
    """

    name = "reference"
    features = ALL_FEATURES
    keeps_bits = True

    def __init__(self, dtype: torch.dtype = torch.float64, stopwatch: Stopwatch = OFF) -> None:
        self.dtype = dtype
        self._stopwatch = stopwatch

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
        """See ``AttentionBackend.attend``; the state is in this backend's dtype."""
        layout.write(layer, key, value)
        width = layout.store.geometry.layers[layer].value_width
        state = AttentionState.empty((*query.shape[:2], width), self.dtype)
        first_seen = spec.first_seen(layout.positions).tolist()
        for row, first in enumerate(first_seen):
            # The path's keys stand at positions 0, 1, and so on.
            keys, values = (part[first:].to(self.dtype) for part in self._path(layout, layer, row))
            group_size = query.shape[1] // keys.shape[1]
            keys = keys.repeat_interleave(group_size, dim=1)
            values = values.repeat_interleave(group_size, dim=1)
            scores = torch.einsum("hd,nhd->hn", query[row].to(self.dtype), keys) * spec.scale
            if spec.soft_cap is not None:
                scores = (scores / spec.soft_cap).tanh() * spec.soft_cap
            if sinks is not None:
                scores = torch.cat([scores, sinks.to(self.dtype).unsqueeze(1)], dim=1)
                values = torch.cat([values, values.new_zeros(1, *values.shape[1:])])
            state.lse[row] = scores.logsumexp(-1)
            state.out[row] = torch.einsum("hn,nhd->hd", scores.softmax(-1), values)
        self._stopwatch.lap("attention: whole paths")
        return state

    def _path(self, layout: BatchLayout, layer: int, row: int) -> tuple[Tensor, Tensor]:
        """All keys and values of a row, ``[n, H, D]``, in the order of their positions."""
        for chunk in layout.causal:
            if chunk.first_row <= row < chunk.last_row:
                *above, own = chunk.segment.path()
                num_own = chunk.start + row - chunk.first_row + 1
                private = [(own.keys(layer)[:num_own], own.values(layer)[:num_own])]
                break
        else:
            source = layout.decodes[layout.decode_rows.tolist().index(row)]
            above = list(source.segment.path())
            private = self._private(layout, layer, source)
        parts = [(segment.keys(layer), segment.values(layer)) for segment in above] + private
        return torch.cat([keys for keys, _ in parts]), torch.cat([values for _, values in parts])

    def _private(self, layout: BatchLayout, layer: int, source: DecodeRow) -> list[tuple[Tensor, Tensor]]:
        store, pool = layout.store, layout.store.pool_of(layer)
        width, parts = store.geometry.layers[layer].value_width, []
        for ordinal, page in enumerate(source.pages.pages[store.pool_number(layer)]):
            used = min(max(source.num_private + 1 - ordinal * store.page_size, 0), store.page_size)
            # A page that was given back has its place, and no numbers.
            keys, values = (
                tensor[0 if page is None else page.index, :, :used].transpose(0, 1)
                for tensor in (pool.keys[layer], pool.values[layer])
            )
            if page is None:
                keys, values = keys * torch.nan, values * torch.nan
            parts.append((keys, values[..., :width]))
        return parts
