"""The roofline counts what a plan does: against pairs and bytes counted one by one."""

from __future__ import annotations

import pytest
import torch

from tests.attention.budget import Case, Forest
from tests.scripts.loading import BENCH, ROOT, load_script
from treeshare.attention.triton.arrays import PlanKey
from treeshare.attention.triton.tables import KernelTables
from treeshare.kv import KVGeometry

CASE = Case(
    (-1, 0, 0, 2),
    (80, 30, 700, 12),
    ((1, 4), (1, 17), (0, 1), (3, 40)),
    prefilled=(2, 3),
    chunk=37,
)


@pytest.fixture
def roofline():
    return load_script(BENCH, "roofline")


@pytest.mark.parametrize("num_processors", [0, 1000])
def test_useful_operations_are_those_of_seen_keys(roofline, num_processors):
    """However the work is cut: four operations for each element of a pair of a query and a key it sees."""
    forest = Forest(CASE)
    key = PlanKey.of(forest.layout, 0, CASE.spec, *forest.query.shape[:2])
    plan = KernelTables.make(forest.layout, key, torch.device("cpu"), num_processors, with_scratch=False)
    costs = roofline.plan_costs(plan)
    seen = sum(len(keys) for keys, _ in forest.seen)
    num_q_heads, head_dim = forest.query.shape[1:]
    assert sum(cost.useful_flops for cost in costs.values()) == 4.0 * seen * num_q_heads * head_dim
    assert all(cost.flops >= cost.useful_flops for cost in costs.values())


def test_keys_are_read_once_however_many_rows_share_them(roofline):
    few = roofline.plan_costs(_plan(roofline, num_rows=64))["attend_slices"]
    many = roofline.plan_costs(_plan(roofline, num_rows=128))["attend_slices"]
    kv_bytes = 2 * 4096 * 8 * 64 * 2
    row_bytes = 8 * 2 * 64 * 2 + 8 * 2 * (64 + 2) * 4  # a query, and a partial state
    assert few.num_bytes == kv_bytes + 64 * row_bytes
    assert many.num_bytes == kv_bytes + 128 * row_bytes
    assert many.useful_flops == 2 * few.useful_flops


def _plan(roofline, num_rows):
    geometry = KVGeometry.uniform(num_layers=1, num_kv_heads=8, head_dim=64, dtype=torch.float16)
    return roofline.shared_prefix_plan(
        geometry, num_rows=num_rows, prefix=4096, private=10, group_size=2, processors=0
    )


def test_the_committed_report_is_what_the_script_writes(roofline, tmp_path, capsys):
    assert roofline.main(["--out", str(tmp_path / "roofline")]) == 0
    committed = ROOT / "docs" / "bench" / "triton_roofline.md"
    assert committed.read_text() == (tmp_path / "roofline.md").read_text(), "run scripts/bench/roofline.py"
    assert "**Nothing here was measured on a GPU.**" in capsys.readouterr().out
