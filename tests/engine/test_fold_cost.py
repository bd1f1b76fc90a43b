"""What a node costs is measured, kept, and gone by."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from treeshare import LLM
from treeshare.attention.native import NativeAttention
from treeshare.config import EngineConfig, FoldCost
from treeshare.engine import fold_cost
from treeshare.engine.fold_cost import fold_cost_here
from treeshare.engine.plan import computed_tree
from treeshare.models import describe_model
from treeshare.tree import PromptTree


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def described(model_dir):
    return describe_model(model_dir("llama"), "float32")


def _cost(described, **options):
    return fold_cost_here(described.geometry, described.config, EngineConfig(**options))


def test_it_is_measured_once_and_leaves_torchs_random_numbers_alone(described, monkeypatch, tmp_path):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    cost = _cost(described)
    assert torch.equal(torch.get_rng_state(), state)
    (path,) = (tmp_path / "treeshare" / "fold_cost").iterdir()
    monkeypatch.setattr(fold_cost, "measure", lambda *_: pytest.fail("measured again"))
    assert _cost(described) == cost
    assert _cost(described, max_num_seqs=7) == dataclasses.replace(cost, max_rows=7)
    path.write_text('{"launch_cost": -1}')
    monkeypatch.setattr(fold_cost, "measure", lambda *_: cost)
    assert _cost(described) == cost


@pytest.mark.parametrize(
    ("per_node", "per_row", "expected"),
    [
        (5e-6, 0.3e-6, FoldCost(launch_cost=8, merge_cost=1)),  # a token is 1 us
        (20e-6, 2e-6, FoldCost(launch_cost=8, merge_cost=1)),
        (40e-6, 5e-6, FoldCost(launch_cost=128, merge_cost=16)),
        (900e-6, 0.0, FoldCost(launch_cost=2048, merge_cost=1)),
        (-5e-6, -1e-6, FoldCost(launch_cost=8, merge_cost=1)),  # noise
    ],
)
def test_the_figures_follow_from_the_times(described, monkeypatch, per_node, per_row, expected):
    def path_seconds(_geometry, _heads, _engine, rows, _level):
        return [1e-3, 1e-3 + (fold_cost._PATH_NODES - 1) * (per_node + per_row * rows)]

    monkeypatch.setattr(fold_cost, "_path_seconds", path_seconds)
    monkeypatch.setattr(fold_cost, "_read_seconds", lambda _: 0.25e-6)
    monkeypatch.setattr(fold_cost, "_prefill_seconds", lambda *_: 0.25e-6 * 128)
    engine = EngineConfig(backend="cpu")
    assert fold_cost.measure(described.geometry, described.config, engine) == expected
    if NativeAttention.can_read(described.geometry):  # carries one result down the path
        native = fold_cost.measure(described.geometry, described.config, EngineConfig(backend="native"))
        assert native.merge_cost == 1


@pytest.mark.parametrize(("launch_cost", "num_nodes"), [(0, 3), (39, 3), (41, 3), (10**6, 3)])
def test_the_engine_folds_by_it(model_dir, launch_cost, num_nodes):
    prompts = [[5] * 40 + [6] * 40, [5] * 40 + [7] * 40]
    cost = FoldCost(launch_cost=launch_cost, merge_cost=0, token_cost=1)
    llm = LLM(model_dir("llama"), dtype="float32", fold_cost=cost)
    assert llm.engine.config.fold_cost == cost
    tree = computed_tree(PromptTree.from_prompts(prompts), llm.engine.config)
    assert len(tree.nodes) == num_nodes
    assert (tree.nodes[0].num_tokens == 40) == (launch_cost < 40)
