"""The KV store's books, held by a state machine over random rules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.examples import examples
from treeshare.devices import peak_resident_bytes
from treeshare.errors import BudgetError, ConfigError
from treeshare.kv import KVGeometry, KVStore, padded_length

GEOMETRY = KVGeometry.uniform(num_layers=2, num_kv_heads=1, head_dim=3, dtype=torch.float32)


def make_store(budget_tokens=400, max_pages=6, poison=True):
    return KVStore(
        GEOMETRY,
        budget_bytes=budget_tokens * GEOMETRY.bytes_per_token,
        page_size=16,
        max_pages=max_pages,
        poison=poison,
    )


class StoreMachine(RuleBasedStateMachine):
    """Segments and pages carry a mark that must survive every move of their neighbours."""

    POISON = True

    def __init__(self):
        super().__init__()
        self.store = make_store(poison=self.POISON)
        self.segments = []
        self.pages = []
        self.next_mark = 1.0

    def mark(self):
        self.next_mark += 1
        return self.next_mark

    @rule(num_tokens=st.integers(1, 130), parent=st.integers(0, 5), count=st.integers(1, 3))
    def add_segments(self, num_tokens, parent, count):
        above = self.segments[parent % len(self.segments)][0] if self.segments and parent else None
        try:
            self.store.segments.reserve(num_tokens, count)
        except BudgetError:
            return
        start = above.end if above else 0
        for _ in range(count):
            segment = self.store.segments.new(start=start, num_tokens=num_tokens, order=0, parent=above)
            mark = self.mark()
            for layer in range(GEOMETRY.num_layers):
                kv = torch.full((num_tokens, 1, 3), mark + layer)
                self.store.segments.write(layer, segment, 0, kv, -kv)
            segment.num_written = num_tokens
            self.segments.append((segment, mark))

    @precondition(lambda self: self.segments)
    @rule(which=st.integers(0, 100))
    def release_segment(self, which):
        leaves = [e for e in self.segments if all(o[0].parent is not e[0] for o in self.segments)]
        entry = leaves[which % len(leaves)]
        self.segments.remove(entry)
        self.store.segments.release(entry[0])

    @rule()
    def shrink(self):
        self.store.segments.compact()

    @rule()
    def trim(self):
        """What is freed goes back to the system; what lives stays."""
        self.store.trim()
        assert self.store.loose_bytes == 0

    @rule(copy=st.booleans(), which=st.integers(0, 100))
    def add_page(self, copy, which):
        try:
            if copy and self.pages:
                source, mark = self.pages[which % len(self.pages)]
                self.pages.append((self.store.pools[0].copy(source), mark))
                return
            page = self.store.pools[0].new_page()
        except BudgetError:
            return
        mark = self.mark()
        for layer in range(GEOMETRY.num_layers):
            kv = torch.full((1, 1, 3), mark + layer)
            self.store.pools[0].write(layer, torch.tensor([page.index]), torch.tensor([5]), kv, -kv)
        self.pages.append((page, mark))

    @precondition(lambda self: self.pages)
    @rule(picks=st.lists(st.integers(0, 100), min_size=1, max_size=4))
    def free_pages(self, picks):
        chosen = {pick % len(self.pages) for pick in picks}
        self.store.pools[0].free([self.pages[i][0] for i in sorted(chosen)])
        self.pages = [entry for i, entry in enumerate(self.pages) if i not in chosen]

    @invariant()
    def books_are_right(self):
        self.store.check_invariants()
        tokens = sum(padded_length(segment.num_tokens) for segment, _ in self.segments)
        assert (
            self.store.bytes_in_use
            >= (tokens + 16 * len({page for page, _ in self.pages})) * GEOMETRY.bytes_per_token
        )

    @invariant()
    def contents_survive(self):
        for layer in range(GEOMETRY.num_layers):
            for segment, mark in self.segments:
                assert torch.all(segment.keys(layer) == mark + layer)
                assert torch.all(segment.values(layer) == -(mark + layer))
                tail = segment.block.values[layer][segment.index, :, segment.num_tokens :]
                assert not tail.any(), "values of padded keys must be zero, the ones too"
            for page, mark in self.pages:
                assert torch.all(self.store.pools[0].keys[layer][page.index, :, 5] == mark + layer)
                assert self.store.pools[0].values[layer][page.index].count_nonzero() == 4

    def teardown(self):
        self.store.pools[0].free([page for page, _ in self.pages])
        for segment, _ in reversed(self.segments):
            self.store.segments.release(segment)
        self.store.check_empty()


class LazyStoreMachine(StoreMachine):
    """The same on memory that is only address space: blocks are one piece, and shrink where they are."""

    POISON = False


StoreMachine.TestCase.settings = settings(examples(60), stateful_step_count=30)
LazyStoreMachine.TestCase.settings = settings(examples(60), stateful_step_count=30)
TestStore = StoreMachine.TestCase
TestLazyStore = LazyStoreMachine.TestCase


def test_the_budget_is_exact():
    store = make_store(budget_tokens=64 + 16)
    segment = store.segments.new(start=0, num_tokens=1, order=0, parent=None)
    page = store.pools[0].new_page()
    with pytest.raises(BudgetError, match=f"got {store.budget_bytes}, expected at least"):
        store.pools[0].new_page()
    with pytest.raises(BudgetError):
        store.segments.new(start=0, num_tokens=1, order=0, parent=None)
    assert store.peak_bytes == store.bytes_in_use == store.budget_bytes
    store.pools[0].free([page])
    store.segments.release(segment)
    store.check_empty()


def test_a_parent_outlives_its_children():
    store = make_store()
    parent = store.segments.new(start=0, num_tokens=10, order=0, parent=None)
    child = store.segments.new(start=10, num_tokens=10, order=1, parent=parent)
    store.segments.release(parent)
    store.check_invariants()
    assert child.path() == (parent, child)
    store.segments.release(child)
    store.check_empty()


def addresses_of(pool):
    return [tensor.data_ptr() for tensors in (pool.keys, pool.values) for tensor in tensors.values()]


def test_pages_are_address_space_until_they_are_written():
    """A budget as large as the machine costs nothing; what pages hold stays where it is as more come."""
    store = KVStore(GEOMETRY, budget_bytes=1 << 45, page_size=64)
    before = peak_resident_bytes()
    store.pools[0].new_page()
    addresses = [
        tensor.data_ptr() for tensor in (*store.pools[0].keys.values(), *store.pools[0].values.values())
    ]
    for _ in range(999):
        store.pools[0].new_page()
    assert addresses == [
        tensor.data_ptr() for tensor in (*store.pools[0].keys.values(), *store.pools[0].values.values())
    ]
    assert peak_resident_bytes() - before < 4 * store.bytes_in_use


def test_more_address_space_than_a_process_may_have_is_one_line(monkeypatch):
    def refused(*_, **__):
        raise OSError("Cannot allocate memory")

    store = KVStore(GEOMETRY, budget_bytes=1 << 30, page_size=64)
    monkeypatch.setattr("mmap.mmap", refused)
    with pytest.raises(ConfigError, match="got 1073741824, which this process cannot"):
        store.pools[0].new_page()
