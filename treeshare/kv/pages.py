"""Private pages: the growing KV of single sequences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from treeshare.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

MIN_PAGES = 16
"""Pages that a pool has room for at first."""


@dataclass(eq=False, slots=True)
class Page:
    """``C`` tokens of a sequence's private KV; once full, of all sequences whose tokens were these.

    Attributes:
        index: Its place in the pool; may change.
        num_users: Sequences that hold it; at zero it is freed.
    """

    index: int
    num_users: int = 1


@dataclass(eq=False, slots=True)
class PagePool:
    """Private pages of all sequences, dense at the front, so that attention reads one contiguous range.

    ``keys_t`` per layer ``[capacity, H, D, C]``, ``values`` per layer ``[capacity, H, C, E]``, laid out as a
    segment's.
    """

    keys_t: list[Tensor]
    values: list[Tensor]
    pages: list[Page | None] = field(default_factory=list)
    num_live: int = 0

    @property
    def capacity(self) -> int:
        """Most pages that fit."""
        return self.keys_t[0].shape[0] if self.keys_t else 0

    def grow(self, max_pages: int, unused: Callable[..., Tensor], *, is_lazy: bool) -> None:
        """Make room for more pages: for ``max_pages`` where room costs nothing, else twice as many.

        Room that is there from the start is never copied, and the old and the new never held at once.

        Args:
            max_pages: Most pages.
            unused: Makes a tensor of a shape whose contents do not matter.
            is_lazy: Whether such a tensor is address space, given memory when it is first written.

        Raises:
            BudgetError: If there are ``max_pages`` already.
        """
        left = max_pages - self.capacity
        if left < 1:
            raise BudgetError(f"private pages: got {self.capacity} in use, expected a free one")
        added = left if is_lazy else min(max(self.capacity, MIN_PAGES), left)
        for tensors in (self.keys_t, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = unused(len(old) + added, *old.shape[1:])
                tensors[layer][: len(old)] = old
