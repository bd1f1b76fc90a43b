"""KV storage: immutable shared segments, growing private pages, and every byte accounted for.

Shapes: ``L`` layers, ``H`` KV heads, ``D`` head_dim, ``E`` extended width of a value row, ``N`` padded tokens
of a segment, ``C`` tokens of a page.

Both kinds keep a value row as ``[v | 1 | 0 ...]``, ``E`` wide: attention's denominator falls out of the same
matmul as its numerator. Unwritten value rows are zero, ones included, so a padded key counts for nothing once
its score is finite; unwritten keys may hold anything, and attention masks their scores.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from treeshare.errors import BudgetError, ConfigError
from treeshare.kv.pages import Page, PagePool
from treeshare.kv.segments import Segment, SegmentBlock

SEGMENT_ALIGNMENT = 64
"""Segments are padded to a multiple of this many tokens, so that equal-sized ones share a batched matmul."""


def padded_length(num_tokens: int) -> int:
    """Tokens that a segment of ``num_tokens`` occupies."""
    return -(-num_tokens // SEGMENT_ALIGNMENT) * SEGMENT_ALIGNMENT


@dataclass(frozen=True, kw_only=True)
class KVGeometry:
    """The shape of a model's KV cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def value_width(self) -> int:
        """``E``: head_dim, the column of ones, and zeros up to a multiple of 16."""
        return -(-(self.head_dim + 1) // 16) * 16

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one stored token over all layers, the value row's extension included."""
        width = self.head_dim + self.value_width
        return self.num_layers * self.num_kv_heads * width * self.dtype.itemsize


class KVStore:
    """All KV of an engine under one byte budget.

    Args:
        geometry: Shape and dtype of one token's KV.
        budget_bytes: Never exceeded by ``bytes_in_use``.
        page_size: ``C``.
        max_pages: Most private pages ever live at once; by default what the budget and the machine hold.
        poison: Fill unused keys with NaN (tests).
        device: Where the KV lies.
    """

    def __init__(
        self,
        geometry: KVGeometry,
        *,
        budget_bytes: int,
        page_size: int,
        max_pages: int | None = None,
        poison: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.geometry = geometry
        self.budget_bytes = budget_bytes
        self.page_size = page_size
        self.peak_bytes = 0
        self.device = torch.device(device)
        held_bytes = budget_bytes
        if self.device.type == "cpu":
            held_bytes = min(budget_bytes, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        self._max_pages = held_bytes // self.page_bytes if max_pages is None else max_pages
        self._poison = poison
        self._blocks: dict[SegmentBlock, None] = {}
        self._block_tokens = 0
        self._with_place: dict[int, dict[SegmentBlock, None]] = {}  # by padded length
        self.pool = PagePool(keys_t=[], values=[])
        self.clear()

    # -- accounting --

    @property
    def page_bytes(self) -> int:
        """Bytes of one private page over all layers."""
        return self.page_size * self.geometry.bytes_per_token

    @property
    def bytes_in_use(self) -> int:
        """Bytes of all blocks (empty places included, they occupy memory) and live pages."""
        return self._block_tokens * self.geometry.bytes_per_token + self.pool.num_live * self.page_bytes

    @property
    def free_bytes(self) -> int:
        """What the budget still holds."""
        return self.budget_bytes - self.bytes_in_use

    @property
    def num_live_segments(self) -> int:
        """Segments held."""
        return sum(block.num_live for block in self._blocks)

    def segment_bytes(self, num_tokens: int) -> int:
        """Bytes that a segment of ``num_tokens`` occupies."""
        return padded_length(num_tokens) * self.geometry.bytes_per_token

    def _charge(self, added_bytes: int) -> None:
        if self.bytes_in_use + added_bytes > self.budget_bytes:
            raise BudgetError(
                f"kv_budget_bytes: got {self.budget_bytes}, "
                f"expected at least {self.bytes_in_use + added_bytes}"
            )
        self.peak_bytes = max(self.peak_bytes, self.bytes_in_use + added_bytes)

    # -- segments --

    def new_block(self, num_tokens: int, capacity: int) -> SegmentBlock:
        """Reserve ``capacity`` places for segments of ``num_tokens`` each, charged to the budget at once.

        Raises:
            BudgetError: If the budget does not hold them; nothing was reserved.
        """
        self._charge(self.segment_bytes(num_tokens) * capacity)
        geometry, tokens = self.geometry, padded_length(num_tokens)
        heads, layers = geometry.num_kv_heads, range(geometry.num_layers)
        keys_t = [self._unused(capacity, heads, geometry.head_dim, tokens) for _ in layers]
        values = [self._unused(capacity, heads, tokens, geometry.value_width).zero_() for _ in layers]
        block = SegmentBlock(tokens, keys_t, values, [None] * capacity)
        self._blocks[block] = None
        self._block_tokens += tokens * capacity
        self._with_place.setdefault(tokens, {})[block] = None
        return block

    def ensure_places(self, num_tokens: int, count: int) -> None:
        """Make sure that ``count`` segments of ``num_tokens`` find a place; new places lie side by side.

        Raises:
            BudgetError: If the budget does not hold the new places.
        """
        blocks = self._with_place.get(padded_length(num_tokens), ())
        free = sum(block.occupants.count(None) for block in blocks)
        if free < count:
            self.new_block(num_tokens, count - free)

    def find_place(self, num_tokens: int) -> tuple[SegmentBlock, int] | None:
        """A free place of the padded length of ``num_tokens``, or None."""
        for block in self._with_place.get(padded_length(num_tokens), ()):
            return block, block.occupants.index(None)
        return None

    def new_segment(self, *, start: int, num_tokens: int, order: int, parent: Segment | None) -> Segment:
        """A segment with one user, in a free place or in a block of its own; retains ``parent``.

        Raises:
            BudgetError: If there is no free place and the budget does not hold one more.
        """
        place = self.find_place(num_tokens) or (self.new_block(num_tokens, 1), 0)
        block, index = place
        segment = Segment(start, num_tokens, order, parent, block, index)
        block.occupants[index] = segment
        if None not in block.occupants:
            self._forget_place(block)
        if parent is not None:
            parent.num_users += 1
        return segment

    def shrink_blocks(self) -> None:
        """Give back the empty places of all blocks, by moving what is live; no bit of it changes."""
        for block in [block for blocks in self._with_place.values() for block in blocks]:
            live = [segment for segment in block.occupants if segment is not None]
            self._forget_place(block)
            self._block_tokens -= block.padded_tokens * (len(block.occupants) - len(live))
            if not live:
                del self._blocks[block]
                continue
            places = torch.tensor([segment.index for segment in live], device=self.device)
            for tensors in (block.keys_t, block.values):
                for layer, tensor in enumerate(tensors):
                    tensors[layer] = tensor.index_select(0, places)
            block.occupants[:] = live
            for index, segment in enumerate(live):
                segment.index = index

    def _forget_place(self, block: SegmentBlock) -> None:
        """The block has no free place any more."""
        blocks = self._with_place[block.padded_tokens]
        del blocks[block]
        if not blocks:
            del self._with_place[block.padded_tokens]

    def release(self, segment: Segment | None) -> None:
        """Drop one use; a segment without users is freed and lets go of its parent, and so up the path."""
        while segment is not None:
            segment.num_users -= 1
            if segment.num_users:
                return
            block = segment.block
            block.occupants[segment.index] = None
            self._with_place.setdefault(block.padded_tokens, {})[block] = None
            if block.num_live:
                for values in block.values:
                    values[segment.index].zero_()
            else:
                self._forget_place(block)
                self._block_tokens -= block.padded_tokens * len(block.occupants)
                del self._blocks[block]
            segment = segment.parent

    def write_segment(self, layer: int, segment: Segment, offset: int, keys: Tensor, values: Tensor) -> None:
        """Store ``keys``, ``values`` ``[n, H, D]`` as the segment's tokens from ``offset`` on."""
        end, head_dim = offset + keys.shape[0], self.geometry.head_dim
        segment.block.keys_t[layer][segment.index, :, :, offset:end] = keys.permute(1, 2, 0)
        place = segment.block.values[layer][segment.index, :, offset:end]
        place[:, :, :head_dim] = values.transpose(0, 1)
        place[:, :, head_dim] = 1

    def copy_tokens(self, source: Segment, target: Segment, num_tokens: int) -> None:
        """Copy what ``target`` lacks of the first ``num_tokens`` of ``source``."""
        start, count = target.num_written, num_tokens - target.num_written
        assert num_tokens <= min(source.num_written, target.num_tokens)
        for layer in range(self.geometry.num_layers):
            for tensors, axis in (("keys_t", 2), ("values", 1)):
                kept = getattr(source.block, tensors)[layer][source.index].narrow(axis, start, count)
                place = getattr(target.block, tensors)[layer][target.index]
                place.narrow(axis, start, count).copy_(kept)
        target.num_written = num_tokens

    # -- private pages --

    def new_page(self) -> Page:
        """An empty page at the end of the dense range.

        Raises:
            BudgetError: If the budget or the pool is full; the scheduler keeps this from happening.
            ConfigError: If the process may not have the address space of a pool within the budget.
        """
        self._charge(self.page_bytes)
        pool = self.pool
        if pool.num_live == pool.capacity:
            try:
                is_lazy = self.device.type == "cpu" and not self._poison
                pool.grow(self._max_pages, self._unused, is_lazy=is_lazy)
            except RuntimeError as error:  # torch has no narrower kind
                raise ConfigError(
                    f"kv_budget_bytes: got {self.budget_bytes}, which this process may not reserve; lower it"
                ) from error
        page = Page(pool.num_live)
        pool.pages.append(page)
        pool.num_live += 1
        for values in pool.values:
            values[page.index].zero_()
        return page

    def fork_bytes(self, num_tokens: int) -> int:
        """What ``fork_pages`` adds: a last page that is not full; full ones are written no more."""
        return self.page_bytes if num_tokens % self.page_size else 0

    def fork_pages(self, pages: Sequence[Page], num_tokens: int) -> list[Page]:
        """The KV of a second sequence with the same ``num_tokens`` tokens: full pages are shared, not copied.

        Raises:
            BudgetError: If the budget does not hold ``fork_bytes``; nothing was shared.
        """
        num_full = num_tokens // self.page_size
        copied = [self.copy_page(page) for page in pages[num_full:]]
        return [*self.share_pages(pages[:num_full]), *copied]

    def share_pages(self, pages: Sequence[Page]) -> list[Page]:
        """The same pages for one more user, who writes to none of them."""
        for page in pages:
            page.num_users += 1
        return list(pages)

    def copy_page(self, source: Page) -> Page:
        """A page with the same contents."""
        page = self.new_page()
        for tensors in (self.pool.keys_t, self.pool.values):
            for tensor in tensors:
                tensor[page.index] = tensor[source.index]
        return page

    def free_pages(self, pages: Sequence[Page]) -> None:
        """Give pages back; what nobody holds any more leaves a hole, filled by moving the last pages."""
        pool = self.pool
        for page in pages:
            assert pool.pages[page.index] is page, "a page is freed once"
            page.num_users -= 1
            if not page.num_users:
                pool.pages[page.index] = None
                pool.num_live -= 1
        moved = [page for page in pool.pages[pool.num_live :] if page is not None]
        holes = [index for index in range(pool.num_live) if pool.pages[index] is None]
        if moved:
            places = holes, [page.index for page in moved]
            target, source = torch.tensor(places, device=self.device)
            for tensors in (pool.keys_t, pool.values):
                for tensor in tensors:
                    tensor.index_copy_(0, target, tensor.index_select(0, source))
        for page, hole in zip(moved, holes, strict=True):
            page.index = hole
            pool.pages[hole] = page
        del pool.pages[pool.num_live :]

    def write_rows(self, layer: int, pages: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store one token per row, ``[n, H, D]``, at ``offsets`` ``[n]`` of ``pages`` ``[n]``."""
        head_dim = self.geometry.head_dim
        self.pool.keys_t[layer][pages, :, :, offsets] = keys
        extended = values.new_zeros(*values.shape[:2], self.geometry.value_width)
        extended[..., :head_dim] = values
        extended[..., head_dim] = 1
        self.pool.values[layer][pages, :, offsets] = extended

    def clear(self) -> None:
        """Let go of everything, whatever state a run that was cut short left behind."""
        geometry, layers = self.geometry, range(self.geometry.num_layers)
        heads, head_dim, width = geometry.num_kv_heads, geometry.head_dim, geometry.value_width
        self._blocks, self._with_place, self._block_tokens = {}, {}, 0
        self.pool = PagePool(
            keys_t=[self._unused(0, heads, head_dim, self.page_size) for _ in layers],
            values=[self._unused(0, heads, self.page_size, width) for _ in layers],
        )

    # -- checks --

    def check_invariants(self) -> None:
        """Assert that the books are right; tests call it after every step."""
        assert self.bytes_in_use <= self.budget_bytes, "KV bytes exceed the budget"
        assert self.bytes_in_use <= self.peak_bytes, "peak bytes fell behind"
        live = [segment for block in self._blocks for segment in block.occupants if segment is not None]
        for block in self._blocks:
            assert block.num_live, "an empty block is still held"
            with_place = block in self._with_place.get(block.padded_tokens, ())
            assert with_place == (None in block.occupants), "a free place is not known, or none is free"
        places = sum(block.padded_tokens * len(block.occupants) for block in self._blocks)
        assert self._block_tokens == places, "blocks are counted wrong"
        for segment in live:
            assert segment.block.occupants[segment.index] is segment, "a segment is not where it says"
            assert 0 <= segment.num_written <= segment.num_tokens <= segment.block.padded_tokens
            children = sum(other.parent is segment for other in live)
            assert segment.num_users >= max(children, 1), "a live segment has too few users"
            assert segment.parent is None or segment.parent in live, "a parent was freed before its child"
        assert len(self.pool.pages) == self.pool.num_live, "pages are not dense"
        for index, page in enumerate(self.pool.pages):
            assert page is not None, "a hole among the pages"
            assert page.index == index, "a page is not where it says"
            assert page.num_users > 0, "a page is for nobody"

    def check_empty(self) -> None:
        """Assert that nothing is left allocated."""
        assert not self._blocks, "segments left allocated"
        assert self.pool.num_live == 0, "pages left allocated"
        assert self.bytes_in_use == 0

    def _unused(self, *shape: int) -> Tensor:
        if self._poison:
            return torch.full(shape, torch.nan, dtype=self.geometry.dtype, device=self.device)
        return torch.empty(shape, dtype=self.geometry.dtype, device=self.device)
