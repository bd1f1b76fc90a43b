"""Tables of pages: what rows see no more goes back, at once, and nothing else."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from treeshare.errors import BudgetError
from treeshare.kv import KVGeometry, KVStore, LayerKV

SIZE = 4
REACHES = (None, 1, 4, 6)


def make_store(reaches=REACHES, budget_tokens=1000, **config):
    layers = tuple(
        LayerKV(num_heads=1 + i, key_width=3, value_width=2, reach=reach) for i, reach in enumerate(reaches)
    )
    geometry = KVGeometry(layers=layers, dtype=torch.float32)
    budget = budget_tokens * geometry.bytes_per_token
    return KVStore(geometry, budget_bytes=budget, page_size=SIZE, max_pages=300, **config)


def advance(store, table, num_tokens, count=1):
    """What a row does to compute ``count`` tokens after the first ``num_tokens``."""
    for token in range(num_tokens, num_tokens + count):
        if token == len(table) * SIZE:
            store.tables.forget(table, token)
            store.tables.grow(table)


def seen_pages(store, pool, num_tokens):
    """By definition: the pages with tokens that the row of token ``num_tokens - 1`` sees."""
    reach = store.pools[pool].reach
    last = num_tokens - 1
    first = 0 if reach is None else max(last - reach + 1, 0)
    return set(range(first // SIZE, last // SIZE + 1))


@pytest.mark.parametrize("num_tokens", [1, 4, 5, 9, 17, 40])
def test_what_rows_see_is_kept_and_little_else(num_tokens):
    store = make_store()
    table = store.tables.new()
    advance(store, table, 0, num_tokens)
    for pool in range(len(store.pools)):
        kept = {place for place, page in enumerate(table.pages[pool]) if page is not None}
        assert seen_pages(store, pool, num_tokens) <= kept
        assert len(kept) <= store.pools[pool].max_kept_pages
    assert store.bytes_in_use == store.tables.bytes_in(table) <= store.tables.bytes_of(num_tokens)
    store.check_invariants()
    store.tables.free([table])
    store.check_empty()


def test_pools_are_by_reach():
    store = make_store((6, None, 6, 1))
    assert [pool.reach for pool in store.pools] == [None, 1, 6]
    assert [store.pool_number(layer) for layer in range(4)] == [2, 0, 2, 1]
    assert [sorted(pool.keys) for pool in store.pools] == [[1], [3], [0, 2]]
    assert store.tables.page_bytes == SIZE * store.geometry.bytes_per_token
    assert sum(size for size, _ in store.geometry.kept) == store.geometry.bytes_per_token


ACTIONS = st.tuples(
    st.integers(0, 20), st.sampled_from(["go on", "fork", "share", "free"]), st.integers(1, 9)
)


@examples(60)
@given(st.lists(ACTIONS))
def test_forks_hold_what_they_see(actions):
    """Pages are shared by those that hold them, and each may give up its own."""
    store = make_store()
    tables = [(store.tables.new(), 0)]
    for which, action, count in actions:
        place = which % len(tables)
        table, num_tokens = tables[place]
        is_full = num_tokens % SIZE == 0  # else it has one user, who writes to its last page
        if action == "go on":
            advance(store, table, num_tokens, count)
            tables[place] = table, num_tokens + count
        elif action == "fork":
            before, added = store.bytes_in_use, store.tables.fork_bytes(num_tokens)
            tables.append((store.tables.fork(table, num_tokens), num_tokens))
            assert store.bytes_in_use <= before + added
        elif action == "share" and is_full:
            tables.append((store.tables.share(table), num_tokens))
        elif action == "free" and len(tables) > 1:
            store.tables.free([tables.pop(place)[0]])
        check(store, tables)
    store.tables.free([table for table, _ in tables])
    store.check_empty()


def check(store, tables):
    """Each page has as many users as tables hold it, each table what its last row sees."""
    store.check_invariants()
    for number, pool in enumerate(store.pools):
        users = Counter(page for table, _ in tables for page in table.held(number))
        assert all(page.num_users == count for page, count in users.items())
        assert pool.num_live == len(users)
        for table, num_tokens in tables:
            kept = {at for at, page in enumerate(table.pages[number]) if page is not None}
            assert not num_tokens or seen_pages(store, number, num_tokens) <= kept


def test_without_room_nothing_is_added():
    store = make_store(budget_tokens=2 * SIZE + 1)
    table = store.tables.new(2)
    with pytest.raises(BudgetError):
        store.tables.grow(table)
    store.check_invariants()
    assert [len(pages) for pages in table.pages] == [2] * len(store.pools)


@pytest.mark.parametrize("reaches", [(None,), (6,), (None, 6, 1)])
@pytest.mark.parametrize("num_pages", [0, 1, 2, 7])
def test_how_many_tokens_bytes_hold(reaches, num_pages):
    """With windows alone any number of tokens fits, once the windows do."""
    store = make_store(reaches)
    num_bytes = store.tables.bytes_of(num_pages * SIZE)
    tokens = store.tables.max_tokens(num_bytes)
    assert tokens >= num_pages * SIZE
    assert store.tables.bytes_of(tokens) == num_bytes
    assert store.tables.max_tokens(num_bytes - 1) < max(num_pages, 1) * SIZE or not num_pages
