"""What the process really takes for KV: within the budget and a quarter, and nothing once it is free.

Resident memory is measured, of a store whose blocks are as small as ``malloc`` keeps for itself, and larger.
"""

from __future__ import annotations

import gc
import os
import sys

import pytest
import torch

from treeshare.kv import KVGeometry, KVStore
from treeshare.kv import store as module
from treeshare.kv.memory import trim_heap

BUDGET = 96 << 20
SLACK = 12 << 20
"""What else a test run allocates meanwhile."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")

GEOMETRIES = {
    "small blocks": KVGeometry.uniform(num_layers=2, num_kv_heads=1, head_dim=32, dtype=torch.bfloat16),
    "large blocks": KVGeometry.uniform(num_layers=8, num_kv_heads=16, head_dim=64, dtype=torch.float32),
}


@pytest.fixture(autouse=True)
def _nothing_lies_around():
    """What earlier tests have freed would be used again, and not be seen."""
    gc.collect()
    trim_heap()


def resident_bytes():
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


def fill_pages(store, share):
    """Use up a share of the budget by pages, keys too; returns them."""
    pages = [store.pools[0].new_page() for _ in range(int(BUDGET * share) // store.tables.page_bytes)]
    for tensors in (store.pools[0].keys, store.pools[0].values):
        for tensor in tensors.values():
            tensor[: store.pools[0].num_live] = 1
    return pages


def fill_segments(store, share, num_tokens):
    """Use up a share of the budget by segments in blocks of their own; returns them."""
    segments = []
    for _ in range(int(BUDGET * share) // store.segments.bytes_of(num_tokens)):
        segment = store.segments.new(start=0, num_tokens=num_tokens, order=0, parent=None)
        for tensor in (*segment.block.keys_t, *segment.block.values):
            tensor[:] = 1
        segments.append(segment)
    return segments


def use(store):
    """Pages, then segments, then both, each nearly the whole budget; yields at the moments of most memory."""
    for num_tokens in (60, 700):
        pages = fill_pages(store, 0.9)
        yield
        store.pools[0].free(pages)
        segments = fill_segments(store, 0.9, num_tokens)
        yield
        for segment in segments[::2]:  # holes, into which no larger block goes
            store.segments.release(segment)
        longer = fill_segments(store, 0.4, 3 * num_tokens)
        yield
        for segment in (*segments[1::2], *longer):
            store.segments.release(segment)


def peak(store):
    """Maximum of resident bytes while a store is used, above those before."""
    before = resident_bytes()
    return max(resident_bytes() - before for _ in use(store))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_process_keeps_to_the_budget_and_gives_all_back(name):
    store = KVStore(GEOMETRIES[name], budget_bytes=BUDGET, page_size=64)
    before = resident_bytes()
    max_bytes = peak(store)
    assert 0.85 * BUDGET < max_bytes <= 1.25 * BUDGET + SLACK
    store.check_empty()
    store.trim()
    assert store.loose_bytes == 0
    assert resident_bytes() - before <= SLACK


def test_what_is_discarded_is_free_at_once():
    """Whoever still refers to it: an interrupt, a search that was not closed."""
    store = KVStore(GEOMETRIES["large blocks"], budget_bytes=BUDGET, page_size=64)
    before = resident_bytes()
    held = fill_pages(store, 0.4), fill_segments(store, 0.4, 100)
    assert resident_bytes() - before > 0.7 * BUDGET
    store.discard()
    assert resident_bytes() - before <= SLACK
    assert all(held)


def test_without_giving_back_the_budget_is_passed(monkeypatch):
    """The positive control."""
    monkeypatch.setattr(module.KVStore, "trim", lambda _: None)
    store = KVStore(GEOMETRIES["large blocks"], budget_bytes=BUDGET, page_size=64)
    assert peak(store) > 1.25 * BUDGET + SLACK


def test_a_process_with_several_stores_can_fork():
    """Their address space together is more than the machine has; none of it is set aside."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        total = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemTotal:"))
    geometry = GEOMETRIES["large blocks"]
    stores = [KVStore(geometry, budget_bytes=total // 2, page_size=64) for _ in range(4)]
    held = [store.tables.new() for store in stores]
    for store, table in zip(stores, held, strict=True):
        store.tables.grow(table)
    child = os.fork()
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
