"""The node to give up is found without looking at all, and one to copy KV from without all siblings."""

from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.forests import requests_for
from tests.examples import examples
from treeshare.config import EngineConfig, FoldCost
from treeshare.engine import forest as forest_module
from treeshare.engine import node_index
from treeshare.engine.engine import Engine
from treeshare.engine.forest import Forest, LiveNode
from treeshare.engine.idle_nodes import SLACK, IdleNodes
from treeshare.engine.node_index import NodeIndex
from treeshare.models import load_model
from treeshare.sampling import SamplingParams
from treeshare.tree import PromptTree

CHANGES = st.tuples(
    st.integers(0, 7),
    st.sampled_from(["num_unfinished", "num_admitted", "num_held", "last_used", "segment", "pop"]),
    st.integers(0, 3),
)


@examples(150)
@given(st.lists(CHANGES, max_size=60), st.sets(st.integers(0, 7), max_size=3))
def test_it_is_the_minimum_of_all(changes, kept):
    nodes = [LiveNode(np.empty(0, np.int32), 0, None, 0) for _ in range(8)]
    keep = [nodes[i] for i in kept]
    idle, taken = IdleNodes(), []
    for which, what, value in changes:
        if what != "pop":
            setattr(nodes[which], what, (value or None) if what == "segment" else value)
            idle.note(nodes[which])
            taken = [node for node in taken if node is not nodes[which]]
            continue
        left = [node for node in nodes if node.is_idle and node not in keep and node not in taken]
        found = idle.pop(keep)
        assert (found is None) == (not left)
        if found is not None:
            assert found in left
            assert found.idle_order == min(node.idle_order for node in left)
            taken.append(found)


def test_what_is_outdated_does_not_pile_up():
    idle, node = IdleNodes(), LiveNode(np.empty(0, np.int32), 0, None, 0)
    node.segment = object()
    for step in range(10_000):
        node.last_used = step
        idle.note(node)
    assert len(idle._heap) <= SLACK + 4
    assert idle.pop() is node
    assert idle.pop() is None


@pytest.mark.parametrize("common", [0, 1, 20])
def test_thousands_of_siblings_are_not_compared(monkeypatch, common):
    """Neither when a prompt is grafted nor when a node looks for KV to copy, whatever all of them share."""
    rng = np.random.default_rng(0)
    shared = list(range(50, 50 + common))
    prompts = [[*shared, i, *rng.integers(0, 9, 40).tolist()] for i in range(2_000)]
    forest = Forest()
    nodes = [
        forest.graft(PromptTree.from_prompts([prompt]), [1], FoldCost(launch_cost=10**6))[0]
        for prompt in prompts
    ]
    assert len({node.parent for node in nodes}) == 1
    for node in nodes:
        node.segment = type("Written", (), {"num_written": node.num_tokens, "order": 0})()
        node.note_computed()
    calls = []
    compare = forest_module.common_prefix
    for module in (forest_module, node_index):
        monkeypatch.setattr(module, "common_prefix", lambda *pair: calls.append(1) or compare(*pair))
    (again,) = forest.graft(PromptTree.from_prompts([prompts[77]]), [1], FoldCost(launch_cost=10**6))
    (beside,) = forest.graft(
        PromptTree.from_prompts([[*prompts[78][: common + 20], 99, 98]]), [1], FoldCost(launch_cost=10**6)
    )
    assert again is nodes[77]
    assert len(calls) <= 4
    calls.clear()
    assert beside.copy_source() == (nodes[78], common + 20)
    assert len(calls) <= 8


def test_a_prompt_that_grows_token_by_token():
    """Each is a node below the last one, deeper than Python nests calls: a client asks token by token."""
    forest, depth = Forest(), sys.getrecursionlimit() + 100
    nodes = [
        forest.graft(PromptTree.from_prompts([list(range(end))]), [1], FoldCost())[0]
        for end in range(1, depth + 1)
    ]
    assert all(node.parent is above for above, node in pairwise(nodes))
    assert [len(node.order) for node in nodes[1:]] == list(range(2, depth + 1))
    assert nodes == sorted(nodes, key=lambda node: node.order)


def test_siblings_without_computed_kv_are_not_copied_from():
    forest = Forest()
    prompt = list(range(5, 60))
    old, new = (
        forest.graft(PromptTree.from_prompts([[*prompt, last]]), [1], FoldCost(launch_cost=10**6))[0]
        for last in (70, 71)
    )
    assert new.copy_source() == (None, 0)
    old.segment = type("Written", (), {"num_written": 32, "order": 0})()
    old.note_computed()
    assert new.copy_source() == (old, 32)
    old.drop_segment()
    assert new.copy_source() == (None, 0)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=12), st.data())
def test_node_index_against_a_look_at_all(rows, data):
    """What is found by neighbours alone is what a comparison with every node finds."""
    index, held = NodeIndex(), []
    for row in rows:
        node = LiveNode(np.array(row, np.int32) * 1000, 0, None)
        held.append(node)
        index.add(node)
        index.add(node)
        if data.draw(st.integers(0, 3)) == 0:
            gone = held.pop(data.draw(st.integers(0, len(held) - 1)))
            index.remove(gone)
            index.remove(gone)
    wanted = np.array(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=6)), np.int32) * 1000
    common = [forest_module.common_prefix(node.token_ids, wanted) for node in held]
    assert index.longest_common(wanted) == max(common, default=0)
    same = [node for node in held if np.array_equal(node.token_ids, wanted)]
    assert index.get(wanted) is (same[0] if same else None)
    sides = [list(side) for side in index.neighbours(wanted)]
    assert sorted(map(id, (*sides[0], *sides[1]))) == sorted(map(id, held))
    for side in sides:
        shares = [forest_module.common_prefix(node.token_ids, wanted) for node in side]
        assert shares == sorted(shares, reverse=True)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=7), min_size=1, max_size=14), st.data())
def test_orders_are_depth_first_without_numbering(prompts, data):
    """Whatever comes and goes, orders sort as a walk through the forest does."""
    forest, leaves = Forest(), []
    for prompt in prompts:
        if data.draw(st.booleans()):
            leaves += forest.graft(PromptTree.from_prompts([prompt]), [1], FoldCost(launch_cost=0))
        else:
            leaves.append(forest.attach_alone(np.array(prompt, np.int32)))
        walk = list(forest.nodes())
        assert [node.order for node in walk] == sorted({node.order for node in walk})
        above_all = [node for node in walk if not node.order]
        tops = [node for node in walk if node.parent.num_tokens == 0]
        assert above_all == (tops if len(tops) == 1 else [])
        removable = [node for node in walk if not node.children]
        if len(walk) > 1 and data.draw(st.integers(0, 2)) == 0:
            forest.remove(data.draw(st.sampled_from(removable)))


def test_a_full_budget_is_freed_without_a_look_at_the_whole_forest(model_dir, monkeypatch):
    loaded = load_model(model_dir("llama"), "float32")
    budget = 40 * 64 * loaded.geometry.bytes_per_token
    engine = Engine(loaded, EngineConfig(page_size=16, kv_budget_bytes=budget, keep_nodes=True))
    prompts = [[5 + i % 150, 5 + i // 150, *range(20, 60)] for i in range(120)]
    params = SamplingParams(n=1, temperature=0, max_tokens=2, ignore_eos=True)
    scans = []
    nodes = Forest.nodes
    monkeypatch.setattr(Forest, "nodes", lambda forest: scans.append(1) or nodes(forest))
    for request in requests_for(prompts, params):
        engine.add_request(request)
        while not engine.is_idle:
            engine.step()
    assert engine.store.segments.num_live > 20
    assert not scans
    engine._scheduler.check_invariants()
    engine.store.check_invariants()
