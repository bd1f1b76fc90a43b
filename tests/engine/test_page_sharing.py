"""Sequences that split share the pages that are full: the same bits, in fewer bytes."""

from __future__ import annotations

import functools

import pytest

from tests.engine.forests import FORESTS, collect, requests_for
from treeshare.config import EngineConfig
from treeshare.engine.engine import Engine
from treeshare.kv import PageTable, PageTables
from treeshare.models import load_model
from treeshare.sampling import SamplingParams

PARAMS = SamplingParams(n=64, temperature=0.04, max_tokens=90, ignore_eos=True)
REQUESTS = requests_for(FORESTS["depth 1"][:2], PARAMS)


def run(folder, requests, **config):
    """Each completion's tokens and their logprob; the engine; the maximum number of users of a page."""
    dtype = config.pop("dtype", "float32")
    engine = Engine(load_model(folder, dtype), EngineConfig(page_size=16, **config), check_invariants=True)
    found, max_users = {}, 1
    for result in engine.run_steps(requests):
        found |= {
            (c.request_index, c.completion_index): (c.token_ids, c.cumulative_logprob)
            for c in result.finished
        }
        max_users = max([max_users, *(page.num_users for page in engine.store.pools[0].pages)])
    return found, engine, max_users


@pytest.fixture(scope="module")
def shared_run(model_dir):
    """``shared_run(dtype)``: what ``run`` gives where pages are shared."""
    return functools.cache(lambda dtype: run(model_dir("llama"), REQUESTS, dtype=dtype))


def copy_all(tables, table, _):
    (pool,) = tables._pools
    return PageTable(([pool.copy(page) for page in table.pages[0]],))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sharing_full_pages_changes_no_bit(model_dir, shared_run, monkeypatch, dtype):
    shared, engine, max_users = shared_run(dtype)
    assert max_users > 16
    with monkeypatch.context() as patch:
        patch.setattr(PageTables, "fork", copy_all)
        copied, other, no_users = run(model_dir("llama"), REQUESTS, dtype=dtype)
    assert no_users == 1
    assert shared == copied
    assert engine.stats.peak_kv_bytes < 0.9 * other.stats.peak_kv_bytes


def test_splitting_changes_no_token(model_dir, shared_run):
    """The reference never splits: each completion has its own row from the start."""
    shared, *_ = shared_run("float32")
    alone, *_ = run(model_dir("llama"), REQUESTS, lazy_divergence=False)
    for key, (tokens, _) in alone.items():
        assert shared[key][0] == tokens


def test_a_tight_budget_takes_shared_pages_away_and_changes_no_bit(model_dir, shared_run):
    free, engine, _ = shared_run("float32")
    tight, preempted, _ = run(
        model_dir("llama"), REQUESTS, kv_budget_bytes=engine.stats.peak_kv_bytes * 2 // 3
    )
    assert preempted.stats.num_preemptions > 0
    assert tight == free
    collect(preempted, REQUESTS[:1])
    preempted.store.check_empty()
