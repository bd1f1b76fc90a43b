"""Private pages: the growing KV of single sequences.

Shapes: ``H`` KV heads, ``D`` width of a key, ``E`` extended width of a value row, ``C`` tokens of a page; all
but the last are a layer's own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from treeshare.errors import BudgetError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from treeshare.kv.memory import KVMemory

MIN_PAGES = 16
"""Minimum number of pages by which a pool grows, within its maximum."""


@dataclass(eq=False, slots=True)
class Page:
    """``C`` tokens of a sequence's private KV; a full page may be shared by sequences with the same tokens.

    Attributes:
        index: Its place in the pool; may change.
        num_users: Sequences that hold it; at zero it is freed.
    """

    index: int
    num_users: int = 1


def page_index(page: Page | None) -> int:
    """A page's place in its pool; -1 in place of a page that was given back."""
    return -1 if page is None else page.index


class PagePool:
    """Private pages of all sequences, dense at the front, so that attention reads one contiguous range.

    Args:
        memory: Allocates the tensors.
        reach: How far rows see in its layers: those of the geometry that have it.
        charge: Called with the bytes of a new page before it is made; raises if the budget lacks them.
        page_size: ``C``.
        max_pages: Maximum number of pages live at once.
        budget_bytes: Named in the error raised where the process may not reserve the address space.

    Attributes:
        reach: See above.
        keys: By layer, ``[capacity, H, C, D]``: a token's lie side by side, unlike a segment's: a page gets
            one token a step.
        values: By layer, ``[capacity, H, C, E]``.
        pages: The live pages by their places.
        num_live: Pages held.
        num_touched: Pages that take memory: the live ones, and freed ones until ``trim``.
    """

    def __init__(
        self,
        memory: KVMemory,
        charge: Callable[[int], None],
        *,
        page_size: int,
        max_pages: int,
        budget_bytes: int,
        reach: int | None = None,
    ) -> None:
        self._memory, self._charge, self._budget_bytes = memory, charge, budget_bytes
        self.page_size, self._max_pages, self.reach = page_size, max_pages, reach
        layers = {i: layer for i, layer in enumerate(memory.geometry.layers) if layer.reach == reach}
        self._token_bytes = sum(layer.size for layer in layers.values()) * memory.geometry.dtype.itemsize
        self.keys = {
            i: memory.allocate(0, layer.num_heads, page_size, layer.key_width) for i, layer in layers.items()
        }
        self.values = {
            i: memory.allocate(0, layer.num_heads, page_size, layer.stored_width)
            for i, layer in layers.items()
        }
        self.pages: list[Page | None] = []
        self.num_live = self.num_touched = 0

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over its layers."""
        return self.page_size * self._token_bytes

    @property
    def max_kept_pages(self) -> int:
        """Maximum pages of a sequence that the next row may see."""
        return sys.maxsize if self.reach is None else -(-(self.reach - 1) // self.page_size) + 1

    @property
    def bytes_in_use(self) -> int:
        """Bytes of the live pages."""
        return self.num_live * self.page_bytes

    @property
    def loose_bytes(self) -> int:
        """Bytes of freed pages that still take memory."""
        return (self.num_touched - self.num_live) * self.page_bytes if self._memory.is_lazy else 0

    @property
    def capacity(self) -> int:
        """Pages that the tensors have room for now."""
        return next((len(keys) for keys in self.keys.values()), 0)

    def new_page(self) -> Page:
        """An empty page at the end of the dense range.

        Raises:
            BudgetError: If the budget or the pool is full; the scheduler keeps this from happening.
            ConfigError: If the process may not reserve the address space of a pool within the budget.
        """
        self._charge(self.page_bytes)
        if self.num_live == self.capacity:
            self._grow()
        page = Page(self.num_live)
        self.pages.append(page)
        self.num_live += 1
        self.num_touched = max(self.num_touched, self.num_live)
        for values in self.values.values():
            values[page.index].zero_()
        return page

    def share(self, pages: Sequence[Page]) -> None:
        """Add a user, who writes to none of them, to each page."""
        for page in pages:
            page.num_users += 1

    def copy(self, source: Page) -> Page:
        """A new page with the same contents; raises as ``new_page``."""
        page = self.new_page()
        for tensors in (self.keys, self.values):
            for tensor in tensors.values():
                tensor[page.index] = tensor[source.index]
        return page

    def free(self, pages: Sequence[Page]) -> None:
        """Drop a user of each page; pages without users are freed, and the last pages take their places."""
        for page in pages:
            assert self.pages[page.index] is page, "a page is freed once"
            page.num_users -= 1
            if not page.num_users:
                self.pages[page.index] = None
                self.num_live -= 1
        moved = [page for page in self.pages[self.num_live :] if page is not None]
        holes = [index for index in range(self.num_live) if self.pages[index] is None]
        if moved:
            places = holes, [page.index for page in moved]
            target, source = torch.tensor(places, device=self._memory.device)
            for tensors in (self.keys, self.values):
                for tensor in tensors.values():
                    tensor.index_copy_(0, target, tensor.index_select(0, source))
        for page, hole in zip(moved, holes, strict=True):
            page.index = hole
            self.pages[hole] = page
        del self.pages[self.num_live :]

    def write(self, layer: int, pages: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store one token per row, keys ``[n, H, D]``, at ``offsets`` ``[n]`` of ``pages`` ``[n]``."""
        shape = self._memory.geometry.layers[layer]
        self.keys[layer][pages, :, offsets] = keys
        extended = values.new_zeros(*values.shape[:2], shape.stored_width)
        extended[..., : shape.value_width] = values
        extended[..., shape.value_width] = 1
        self.values[layer][pages, :, offsets] = extended

    def trim(self) -> None:
        """Return the memory of freed pages to the system."""
        for tensors in (self.keys, self.values):
            for tensor in tensors.values():
                self._memory.give_back(tensor, self.num_live)
        self.num_touched = self.num_live

    def discard(self) -> None:
        """Let go of all memory; the pool cannot be used any more."""
        self.keys.clear()
        self.values.clear()

    def check_invariants(self) -> None:
        """Assert that counts and places agree."""
        assert len(self.pages) == self.num_live, "pages are not dense"
        assert self.num_live <= self.num_touched <= self.capacity, "pages that take memory are miscounted"
        for index, page in enumerate(self.pages):
            assert page is not None, "a hole among the pages"
            assert page.index == index, "a page is not where it says"
            assert page.num_users > 0, "a live page has no users"

    def check_empty(self) -> None:
        """Assert that nothing is left allocated."""
        assert self.num_live == 0, "pages left allocated"

    def _grow(self) -> None:
        """Raise the capacity: to ``max_pages`` where new tensors take no memory, else to twice as many pages.

        What has its full capacity from the start is never copied, so old and new tensors never take memory
        at the same time.
        """
        left = self._max_pages - self.capacity
        if left < 1:
            raise BudgetError(f"private pages: got {self.capacity} in use, expected a free one")
        added = left if self._memory.is_lazy else min(max(self.capacity, MIN_PAGES), left)
        try:
            for tensors in (self.keys, self.values):
                for layer, old in tensors.items():
                    tensors[layer] = self._memory.allocate(len(old) + added, *old.shape[1:])
                    tensors[layer][: len(old)] = old
        except (OSError, RuntimeError) as error:  # torch raises no narrower class than the second
            raise ConfigError(
                f"kv_budget_bytes: got {self._budget_bytes}, which this process cannot reserve; lower it"
            ) from error
