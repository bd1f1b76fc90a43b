"""The node to give up is found without looking at all, and one to copy KV from without all siblings."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.forests import requests_for
from treeshare.config import EngineConfig, FoldCost
from treeshare.engine import forest as forest_module
from treeshare.engine.engine import Engine
from treeshare.engine.forest import Forest, LiveNode
from treeshare.engine.idle_nodes import SLACK, IdleNodes
from treeshare.models import load_model
from treeshare.sampling import SamplingParams
from treeshare.tree import PromptTree

CHANGES = st.tuples(
    st.integers(0, 7),
    st.sampled_from(["num_unfinished", "num_admitted", "num_held", "last_used", "segment", "pop"]),
    st.integers(0, 3),
)


@settings(max_examples=150, deadline=None)
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


def test_ten_thousand_siblings_are_not_compared(monkeypatch):
    """Neither when a prompt is grafted nor when a node looks for KV to copy."""
    rng = np.random.default_rng(0)
    prompts = [[i, *rng.integers(0, 9, 40).tolist()] for i in range(10_000)]
    forest = Forest()
    nodes = forest.graft(PromptTree.from_prompts(prompts), [1] * len(prompts), FoldCost())
    for node in nodes:
        node.segment = type("Written", (), {"num_written": 41, "order": 0})()
    calls = []
    compare = forest_module.common_prefix
    monkeypatch.setattr(forest_module, "common_prefix", lambda *pair: calls.append(1) or compare(*pair))
    assert all(node.copy_source() == (None, 0) for node in nodes)
    (again,) = forest.graft(PromptTree.from_prompts([prompts[77]]), [1], FoldCost())
    (beside,) = forest.graft(PromptTree.from_prompts([[*prompts[78][:20], 99, 98]]), [1], FoldCost())
    assert again is nodes[77]
    assert len(calls) <= 4
    assert beside.copy_source() == (nodes[78], 20) or beside.parent.num_tokens == 20


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
    assert len(scans) <= len(prompts)  # one each, to number the forest
    engine._scheduler.check_invariants()
    engine.store.check_invariants()
