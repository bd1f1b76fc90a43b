"""The contract of the backends: each against brute force, within the precision budget, on poisoned memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.attention.budget import Case, Forest, assert_within_budget
from treeshare.attention import CpuAttention, ReferenceAttention

BACKENDS = {"reference": ReferenceAttention, "cpu": CpuAttention}

FORESTS = {
    "one sequence": Case((-1,), (5,), ((0, 0),)),
    "one prefill": Case((-1,), (150,), (), prefilled=(0,), chunk=150),
    "length 1": Case((-1, 0, 0), (1, 1, 1), ((1, 0), (2, 1))),
    "page borders": Case((-1,), (64,), tuple((0, n) for n in (0, 14, 15, 16, 17, 31, 32, 33, 48))),
    "block borders": Case(
        (-1, 0, 0, 0, 0), (63, 64, 65, 127, 129), tuple((n, 3) for n in (0, 1, 1, 2, 3, 4))
    ),
    "equal nodes": Case(
        (-1, 0, 0, 0), (130, 50, 50, 50), tuple((n, n) for n in (1, 2, 3) for _ in range(16))
    ),
    "uneven nodes": Case(
        (-1, 0, 0, 0, 0), (70, 40, 45, 50, 30), ((1, 2), *((2, i) for i in range(40)), (4, 1), (4, 9))
    ),
    "a forest": Case((-1, -1, 1), (20, 90, 10), ((0, 1), (1, 0), (2, 20))),
    "depth 6": Case((-1, 0, 1, 2, 3, 4), (40, 3, 70, 1, 64, 9), ((5, 2), (5, 17), (2, 0), (0, 5))),
    "mixed step": Case((-1, 0, 0, 2), (80, 30, 64, 12), ((1, 4), (1, 8), (0, 1)), prefilled=(2, 3), chunk=37),
}


@pytest.fixture(params=sorted(BACKENDS))
def backend(request):
    return BACKENDS[request.param]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FORESTS)
def test_forests(backend, name, dtype):
    forest = Forest(replace(FORESTS[name], dtype=dtype))
    assert_within_budget(forest, forest.attend(backend))


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
@pytest.mark.parametrize(("num_kv_heads", "group_size"), [(1, 1), (4, 1), (1, 8), (3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_heads(backend, num_kv_heads, group_size, head_dim, dtype):
    case = replace(
        FORESTS["mixed step"],
        num_kv_heads=num_kv_heads,
        group_size=group_size,
        head_dim=head_dim,
        dtype=dtype,
    )
    forest = Forest(case)
    assert_within_budget(forest, forest.attend(backend))


@pytest.mark.parametrize("name", ["equal nodes", "depth 6", "mixed step"])
def test_rows_computed_alone(backend, name):
    forest = Forest(replace(FORESTS[name], share_rows=False))
    assert_within_budget(forest, forest.attend(backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_large_scores(backend, dtype):
    """Scores of several hundreds, of either sign: nothing overflows, no padded key is seen."""
    forest = Forest(replace(FORESTS["uneven nodes"], score_scale=6.0, dtype=dtype))
    assert_within_budget(forest, forest.attend(backend))


def test_tiles(backend, monkeypatch):
    """More query rows than one tile of scores holds."""
    monkeypatch.setattr("treeshare.attention.cpu.TILE_BYTES", 1)
    case = Case((-1, 0), (300, 200), tuple((1, 0) for _ in range(50)), prefilled=(1,), chunk=150)
    forest = Forest(case)
    assert_within_budget(forest, forest.attend(backend))
