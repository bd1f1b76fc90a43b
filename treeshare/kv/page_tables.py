"""The private pages of a sequence in every pool: layers whose rows see less keep less."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from treeshare.kv.pages import Page, PagePool

_MAX_PAGES = 1 << 40


@dataclass(eq=False, slots=True)
class PageTable:
    """The pages of one sequence, oldest first.

    Attributes:
        pages: Of each of the store's pools; None in place of one that was given back.
    """

    pages: tuple[list[Page | None], ...]

    def __len__(self) -> int:
        """Pages that its tokens fill, those given back included."""
        return len(self.pages[0])

    def held(self, pool: int) -> list[Page]:
        """The pages in a pool that were not given back."""
        return [page for page in self.pages[pool] if page is not None]


class PageTables:
    """Grows, forks and frees the tables of sequences.

    Args:
        pools: The store's, each with layers of one reach.
    """

    def __init__(self, pools: Sequence[PagePool]) -> None:
        self._pools = pools
        self._page_size = pools[0].page_size

    @property
    def page_bytes(self) -> int:
        """Bytes that a page takes, all pools together."""
        return sum(pool.page_bytes for pool in self._pools)

    def bytes_of(self, num_tokens: int) -> int:
        """Maximum bytes of a sequence's pages while it gets ``num_tokens`` tokens with KV."""
        return self._bytes_of_pages(-(-num_tokens // self._page_size))

    def max_tokens(self, num_bytes: int) -> int:
        """The most tokens that ``bytes_of`` holds within so many bytes; at least 0."""
        num_pages = bisect_right(range(_MAX_PAGES), num_bytes, key=self._bytes_of_pages) - 1
        return max(num_pages, 0) * self._page_size

    def _bytes_of_pages(self, num_pages: int) -> int:
        return sum(min(num_pages, pool.max_kept_pages) * pool.page_bytes for pool in self._pools)

    def bytes_in(self, table: PageTable) -> int:
        """Bytes of a table's pages."""
        return sum(len(table.held(i)) * pool.page_bytes for i, pool in enumerate(self._pools))

    def new(self, num_pages: int = 0) -> PageTable:
        """A table of new pages; raises as ``grow``."""
        table = PageTable(tuple([] for _ in self._pools))
        for _ in range(num_pages):
            self.grow(table)
        return table

    def grow(self, table: PageTable) -> None:
        """Add a page.

        Raises:
            BudgetError: As ``PagePool.new_page``; nothing was added.
            ConfigError: Likewise.
        """
        added: list[Page] = []
        try:
            for pool in self._pools:
                added.append(pool.new_page())
        except BaseException:
            for pool, page in zip(self._pools, added, strict=False):
                pool.free([page])
            raise
        for pages, page in zip(table.pages, added, strict=True):
            pages.append(page)

    def forget(self, table: PageTable, num_tokens: int) -> None:
        """Give back what no row sees any more of a sequence that has ``num_tokens`` tokens."""
        for pool, pages in zip(self._pools, table.pages, strict=True):
            if pool.reach is None:
                continue
            unseen = max(num_tokens - pool.reach + 1, 0) // self._page_size
            gone = [page for page in pages[:unseen] if page is not None]
            if gone:
                pages[:unseen] = [None] * unseen
                pool.free(gone)

    def fork_bytes(self, num_tokens: int) -> int:
        """Bytes that ``fork`` adds: those of a last page that is not full; full pages are shared."""
        return self.page_bytes if num_tokens % self._page_size else 0

    def fork(self, table: PageTable, num_tokens: int) -> PageTable:
        """The KV of a second sequence with the same ``num_tokens`` tokens: full pages are shared, not copied.

        Raises:
            BudgetError: If the budget does not hold ``fork_bytes``; nothing was shared.
        """
        num_full = num_tokens // self._page_size
        forked = self.new()
        try:
            for pool, own, pages in zip(self._pools, forked.pages, table.pages, strict=True):
                for page in pages[num_full:]:
                    own.append(None if page is None else pool.copy(page))
        except BaseException:
            self.free([forked])
            raise
        for pool, own, pages in zip(self._pools, forked.pages, table.pages, strict=True):
            pool.share([page for page in pages[:num_full] if page is not None])
            own[:0] = pages[:num_full]
        return forked

    def share(self, table: PageTable) -> PageTable:
        """A table of the same pages for another user, who writes to none of them."""
        for i, pool in enumerate(self._pools):
            pool.share(table.held(i))
        return PageTable(tuple(list(pages) for pages in table.pages))

    def free(self, tables: Iterable[PageTable]) -> None:
        """Empty tables; pages without users are freed, and others may move."""
        tables = list(tables)
        for i, pool in enumerate(self._pools):
            freed = [page for table in tables for page in table.held(i)]
            for table in tables:
                table.pages[i].clear()
            pool.free(freed)
