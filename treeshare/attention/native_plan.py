"""What the ``native`` backend plans beside the layout: a step as arrays that the compiled kernel reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from treeshare.attention.key_blocks import block_slices
from treeshare.kv import page_index
from treeshare.native.structs import PIECE, SLICE, TreeStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.attention.api import AttentionSpec
    from treeshare.attention.key_blocks import BlockSlice, Piece
    from treeshare.attention.layout import BatchLayout
    from treeshare.kv import LayerKV


class NativePlan:
    """A layout as arrays, made once a step.

    Args:
        layout: The step's; kept, with the KV that it reads.

    Attributes:
        layout: See above.
    """

    def __init__(self, layout: BatchLayout) -> None:
        self.layout = layout
        slices = block_slices(layout)
        self._places = Places([piece for part in slices for piece in part.pieces])
        self._slices = _slice_array(slices)
        self._views: dict[tuple[int, int | None, int | None], View] = {}

    def step(self, layer: int, num_q_heads: int, spec: AttentionSpec) -> TreeStep:
        """The kernel's view of the step in one layer, without its sinks; valid until the next call."""
        store = self.layout.store
        number, shape = store.pool_number(layer), store.geometry.layers[layer]
        step = self._view(number, spec).step
        step.num_kv_heads, step.group_size = shape.num_heads, num_q_heads // shape.num_heads
        step.key_width, step.value_width = shape.key_width, shape.value_width
        step.stored_width = shape.stored_width
        step.soft_cap = spec.soft_cap or 0.0
        self._places.locate(layer, shape)
        step.pool_keys = store.pools[number].keys[layer].data_ptr()
        step.pool_values = store.pools[number].values[layer].data_ptr()
        return step

    def _view(self, pool: int, spec: AttentionSpec) -> View:
        """What rows see with a window and chunks; one view for all that hide nothing in this step."""
        wanted = (pool, spec.window, spec.chunk)
        if wanted not in self._views:
            first_seen = spec.first_seen(self.layout.positions).numpy()
            if first_seen.any():
                self._views[wanted] = View(self.layout, pool, self._slices, self._places, first_seen)
            else:
                whole = (pool, None, None)
                if whole not in self._views:
                    self._views[whole] = View(self.layout, pool, self._slices, self._places, None)
                self._views[wanted] = self._views[whole]
        return self._views[wanted]


class View:
    """What the rows of a step see, as the kernel reads it.

    Pages that a row sees nothing of are not looked at: they may have been given back.

    Args:
        layout: Of the step.
        pool: Which of the store's pools has the pages.
        slices: Of all rows.
        places: The pieces of the slices.
        first_seen: Position of the first key that each row sees; None: all rows see all before them.

    Attributes:
        slices: ``[n]`` ``SLICE``: those of which a row sees a key.
        pages: Page numbers of all decoding rows.
        page_indptr: ``[num_rows + 1]``: where each row's begin.
        tokens: ``[num_rows]``: tokens on a row's pages.
        places, first_seen: As given.
        hidden_tokens: ``[num_rows]``: tokens of a row's first page that it does not see.
        step: All of them; what belongs to a layer is missing.
    """

    def __init__(
        self,
        layout: BatchLayout,
        pool: int,
        slices: NDArray[Any],
        places: Places,
        first_seen: NDArray[np.int64] | None,
    ) -> None:
        self.places, self.first_seen = places, first_seen
        self.slices = slices if first_seen is None else slices[_seen_slices(slices, first_seen)]
        rows, size = layout.decode_rows.numpy(), layout.store.page_size
        ends = _int64([source.segment.end for source in layout.decodes])
        private = _int64([source.num_private for source in layout.decodes])
        hidden = np.zeros_like(ends) if first_seen is None else np.maximum(first_seen[rows] - ends, 0)
        first_page = hidden // size
        num_pages, self.tokens, self.hidden_tokens = np.zeros((3, layout.num_rows), np.int64)
        num_pages[rows] = private // size + 1 - first_page
        self.tokens[rows] = private + 1 - first_page * size
        self.hidden_tokens[rows] = hidden - first_page * size
        self.page_indptr = np.concatenate([[0], num_pages.cumsum()])
        bounds = zip(first_page.tolist(), (private // size + 1).tolist(), strict=True)
        self.pages = _int64(
            [
                page_index(page)
                for source, (first, end) in zip(layout.decodes, bounds, strict=True)
                for page in source.pages.pages[pool][first:end]
            ]
        )
        assert (self.pages >= 0).all(), "a page that a row sees was given back"
        self.step = TreeStep(
            num_rows=layout.num_rows,
            page_size=size,
            num_slices=len(self.slices),
            slices=self.slices.ctypes.data,
            pieces=places.pieces.ctypes.data,
            page_indptr=self.page_indptr.ctypes.data,
            pages=self.pages.ctypes.data,
            private_tokens=self.tokens.ctypes.data,
            first_seen=None if first_seen is None else first_seen.ctypes.data,
            hidden_tokens=None if first_seen is None else self.hidden_tokens.ctypes.data,
        )


class Places:
    """Pieces of segments as the kernel reads them, and where they lie in a layer.

    Attributes:
        pieces: ``[n]`` ``PIECE``; addresses as of the last ``locate``.
    """

    def __init__(self, parts: Sequence[Piece]) -> None:
        self._blocks = list({id(segment.block): segment.block for segment, _, _ in parts}.values())
        numbers = {id(block): number for number, block in enumerate(self._blocks)}
        self._block = _int64([numbers[id(segment.block)] for segment, _, _ in parts])
        self.pieces = np.zeros(len(parts), PIECE)
        self.pieces["padded_tokens"] = [segment.block.padded_tokens for segment, _, _ in parts]
        self.pieces["num_tokens"] = [last - first for _, first, last in parts]
        self._parts = parts
        self._offsets: dict[LayerKV, tuple[NDArray[np.uint64], NDArray[np.uint64]]] = {}

    def locate(self, layer: int, shape: LayerKV) -> None:
        """Write a layer's addresses into ``pieces``; offsets are computed once for layers of one shape."""
        if shape not in self._offsets:
            blocks = [segment.block for segment, _, _ in self._parts]
            self._offsets[shape] = (
                _offsets(self._parts, [block.keys_t[layer] for block in blocks], axis=3),
                _offsets(self._parts, [block.values[layer] for block in blocks], axis=2),
            )
        key_offsets, value_offsets = self._offsets[shape]
        keys = _addresses([block.keys_t[layer] for block in self._blocks])
        values = _addresses([block.values[layer] for block in self._blocks])
        self.pieces["keys"] = keys[self._block] + key_offsets
        self.pieces["values"] = values[self._block] + value_offsets


def _slice_array(parts: Sequence[BlockSlice]) -> NDArray[Any]:
    slices = np.zeros(len(parts), SLICE)
    slices["first_row"] = [part.first_row for part in parts]
    slices["last_row"] = [part.last_row for part in parts]
    slices["num_pieces"] = [len(part.pieces) for part in parts]
    slices["first_piece"] = slices["num_pieces"].cumsum() - slices["num_pieces"]
    slices["num_keys"] = [part.num_keys for part in parts]
    slices["first_position"] = [part.first_position for part in parts]
    slices["first_own_token"] = [part.first_own_token or 0 for part in parts]
    slices["causal"] = [part.first_own_token is not None for part in parts]
    return slices


def _seen_slices(slices: NDArray[Any], first_seen: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which slices have a key that one of their rows sees."""
    bounds = np.stack([slices["first_row"], slices["last_row"]], axis=1).ravel()
    lowest = np.minimum.reduceat(np.append(first_seen, 0), bounds)[::2]  # from each even bound to the next
    seen: NDArray[np.bool_] = lowest < slices["first_position"] + slices["num_keys"]
    return seen


def _int64(values: Sequence[Any]) -> NDArray[np.int64]:
    return np.ascontiguousarray(np.array(values, dtype=np.int64))


def _addresses(tensors: Sequence[Tensor]) -> NDArray[np.uint64]:
    return np.array([tensor.data_ptr() for tensor in tensors], dtype=np.uint64)


def _offsets(parts: Sequence[Piece], tensors: Sequence[Tensor], axis: int) -> NDArray[np.uint64]:
    """Bytes from a tensor's start, ``[segments, H, ...]`` with tokens on ``axis``, to each piece."""
    return np.array(
        [
            (segment.index * tensor.stride(0) + first * tensor.stride(axis)) * tensor.element_size()
            for (segment, first, _), tensor in zip(parts, tensors, strict=True)
        ],
        dtype=np.uint64,
    )
