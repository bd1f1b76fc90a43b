"""KV storage: shared segments, growing private pages, and every byte accounted for.

Both kinds keep a value row as ``[v | 1 | 0 ...]``, ``E`` wide, so that one matmul gives attention's numerator
and its denominator. Unwritten value rows are all zero, so a padded key counts for nothing once its score is
finite; unwritten keys may hold anything, and attention masks their scores.
"""

from __future__ import annotations

import os

import torch

from treeshare.errors import BudgetError
from treeshare.kv.memory import KVGeometry, KVMemory, trim_heap
from treeshare.kv.page_tables import PageTables
from treeshare.kv.pages import PagePool
from treeshare.kv.segments import SegmentStore

LOOSE_SHARE = 0.125
"""Share of the budget by which the process may hold more memory than the budget: what was freed and has not
gone back to the system. Returning it costs system calls, and page faults when it is used again."""


class KVStore:
    """All KV of an engine under one byte budget.

    Args:
        geometry: Shape and dtype of one token's KV.
        budget_bytes: Never exceeded by ``bytes_in_use``.
        page_size: Tokens of a private page.
        max_pages: Maximum number of private pages live at once; by default what the budget and the machine
            hold.
        poison: Fill unused keys with NaN (tests).
        device: Where the KV lies.

    Attributes:
        segments: The KV of tree nodes.
        pools: The private pages of sequences: a pool for the layers of each reach.
        tables: Which pages a sequence has in every pool.
        peak_bytes: Maximum of ``bytes_in_use`` since the store was made, or since ``restart_peak``.
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
        self.device = torch.device(device)
        self.peak_bytes = 0
        memory = KVMemory(geometry, self.device, poison)
        held_bytes = budget_bytes
        if self.device.type == "cpu":
            held_bytes = min(budget_bytes, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        self.segments = SegmentStore(memory, self._charge)
        self.pools = tuple(
            PagePool(
                memory,
                self._charge,
                page_size=page_size,
                max_pages=held_bytes // (page_size * token_bytes) if max_pages is None else max_pages,
                budget_bytes=budget_bytes,
                reach=reach,
            )
            for token_bytes, reach in geometry.kept
        )
        self.tables = PageTables(self.pools)
        self._pool_numbers = [geometry.reaches.index(layer.reach) for layer in geometry.layers]

    def pool_number(self, layer: int) -> int:
        """Which of ``pools`` has a layer's pages."""
        return self._pool_numbers[layer]

    def pool_of(self, layer: int) -> PagePool:
        """The pool of a layer's pages."""
        return self.pools[self.pool_number(layer)]

    @property
    def bytes_in_use(self) -> int:
        """Bytes of all segments, their empty places included, and live pages."""
        return self.segments.bytes_in_use + sum(pool.bytes_in_use for pool in self.pools)

    @property
    def free_bytes(self) -> int:
        """Bytes that the budget still holds."""
        return self.budget_bytes - self.bytes_in_use

    def restart_peak(self) -> None:
        """Measure ``peak_bytes`` from now on."""
        self.peak_bytes = self.bytes_in_use

    def check_invariants(self) -> None:
        """Assert that bytes, counts and places agree; tests call it after every step."""
        assert self.bytes_in_use <= self.budget_bytes, "KV bytes exceed the budget"
        assert self.bytes_in_use <= self.peak_bytes, "peak bytes fell behind"
        self.segments.check_invariants()
        for pool in self.pools:
            pool.check_invariants()

    def check_empty(self) -> None:
        """Assert that nothing is left allocated."""
        self.segments.check_empty()
        for pool in self.pools:
            pool.check_empty()
        assert self.bytes_in_use == 0

    @property
    def loose_bytes(self) -> int:
        """Bytes that were freed, and that the process may hold still."""
        return self.segments.loose_bytes + sum(pool.loose_bytes for pool in self.pools)

    def trim(self) -> None:
        """Return to the system what was freed, if anything was."""
        if self.loose_bytes:
            for pool in self.pools:
                pool.trim()
            self.segments.loose_bytes = 0
            trim_heap()

    def discard(self) -> None:
        """Let go of all memory, whoever still refers to it; the store cannot be used any more."""
        self.segments.discard()
        for pool in self.pools:
            pool.discard()
        trim_heap()

    def _charge(self, added_bytes: int) -> None:
        """Account for bytes that are about to be used.

        Raises:
            BudgetError: If the budget does not hold them.
        """
        if self.bytes_in_use + added_bytes > self.budget_bytes:
            raise BudgetError(
                f"kv_budget_bytes: got {self.budget_bytes}, "
                f"expected at least {self.bytes_in_use + added_bytes}"
            )
        self.peak_bytes = max(self.peak_bytes, self.bytes_in_use + added_bytes)
        held = self.bytes_in_use + self.loose_bytes + added_bytes
        if held > self.budget_bytes * (1 + LOOSE_SHARE):
            self.trim()
