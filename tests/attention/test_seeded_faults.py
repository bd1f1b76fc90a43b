"""Known bugs, patched in one at a time: the suite's check must fail for each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.attention.budget import Case, Forest, assert_within_budget
from tests.attention.faults import triton_kernel_with, triton_tables_with, wrap
from treeshare.attention import (
    AttentionSpec,
    CpuAttention,
    TritonAttention,
    cpu,
    cpu_plan,
    layout,
)
from treeshare.attention.triton.columns import PageColumn, SliceColumn, SourceColumn, TargetColumn

CASE = Case(
    (-1, 0, 0, 2),
    (80, 30, 70, 12),
    ((1, 4), (1, 17), (0, 1), (3, 40)),
    prefilled=(2, 3),
    chunk=37,
)


def check():
    """What the suite checks of a backend, on one mixed step."""
    forest = Forest(CASE)
    assert_within_budget(forest, forest.attend(CpuAttention()))


def base_two_logarithm(monkeypatch):
    def change(state):
        return lambda self, *a: replace(s := state(self, *a), lse=s.lse * 1.4426950408889634)

    wrap(monkeypatch, cpu._Accumulator, "state", change)


def forgotten_maximum(monkeypatch):
    def change(add):
        return lambda self, kind, rows, numerator, high: add(
            self, kind, rows, numerator, torch.zeros_like(high)
        )

    wrap(monkeypatch, cpu._Accumulator, "add", change)


def dropped_level(monkeypatch):
    wrap(monkeypatch, cpu_plan, "_shared_groups", lambda groups: lambda *a: groups(*a)[1:])


def slice_off_by_one(monkeypatch):
    def change(extend):
        return lambda slices, above, first, last, **k: extend(slices, above, first, last - 1, **k)

    wrap(monkeypatch, layout, "_extend_slices", change)


def swapped_head_group(monkeypatch):
    def change(attend):
        return lambda self, query, *a, **k: attend(self, query.flip(1), *a, **k)

    wrap(monkeypatch, CpuAttention, "attend", change)


def forgotten_scale(monkeypatch):
    def change(attend):
        return lambda self, *a, **k: attend(self, *a, **(k | {"spec": AttentionSpec(scale=1.0)}))

    wrap(monkeypatch, CpuAttention, "attend", change)


def padded_keys_seen(monkeypatch):
    wrap(monkeypatch, cpu_plan, "_key_padding", lambda _: lambda run: None)


def unwritten_page_keys_seen(monkeypatch):
    def change(pages):
        return lambda *a: replace(p := pages(*a), unseen=torch.zeros_like(p.unseen))

    wrap(monkeypatch, cpu_plan, "_private_pages", change)


def one_private_token_missed(monkeypatch):
    def change(pages):
        return lambda *a: replace(p := pages(*a), unseen=p.unseen.roll(-1, 1) | p.unseen)

    wrap(monkeypatch, cpu_plan, "_private_pages", change)


def oldest_page_dropped(monkeypatch):
    def change(pages):
        return lambda *a: replace(p := pages(*a), ordinals=p.ordinals[1:])

    wrap(monkeypatch, cpu_plan, "_private_pages", change)


def causal_mask_off_by_one(monkeypatch):
    def change(attend):
        def attend_dense(query, keys_t, values, masked, *a, **k):
            if masked is not None and masked.dim() == 2:
                masked = masked.roll(1, 1) & masked
            return attend(query, keys_t, values, masked, *a, **k)

        return attend_dense

    wrap(monkeypatch, cpu, "_attend_dense", change)


def own_token_not_stored(monkeypatch):
    monkeypatch.setattr(layout.BatchLayout, "write", lambda *a: None)


FAULTS = [
    base_two_logarithm,
    forgotten_maximum,
    dropped_level,
    slice_off_by_one,
    swapped_head_group,
    forgotten_scale,
    padded_keys_seen,
    unwritten_page_keys_seen,
    one_private_token_missed,
    oldest_page_dropped,
    causal_mask_off_by_one,
    own_token_not_stored,
]


TRITON_CASE = Case(
    (-1, 0, 1),
    (80, 30, 12),
    ((1, 4), (1, 40), (0, 1)),
    prefilled=(2,),
    chunk=7,
    num_kv_heads=1,
    group_size=2,
    dtype=torch.bfloat16,
)


def check_triton():
    """Interpreted, and cut into chunks of one block of keys."""
    forest = Forest(TRITON_CASE)
    backend = TritonAttention(forest.store.geometry, num_processors=1000)
    assert_within_budget(forest, forest.attend(backend))


def triton_shifts_a_slice(tables):
    tables["shared"][0, [SliceColumn.FIRST_ROW, SliceColumn.LAST_ROW]] += 1


def triton_sees_a_padded_key(tables):
    last_key = tables["shared"][:, SliceColumn.LAST_KEY]
    last_key[last_key == 30] += 1


def triton_sees_one_key_less(tables):
    tables["shared"][0, SliceColumn.LAST_KEY] -= 1


def triton_drops_a_chunk(tables):
    num_chunks = tables["sources"][:, SourceColumn.NUM_CHUNKS]
    num_chunks[num_chunks > 1] -= 1


def triton_drops_a_level(tables):
    tables["sources"][0, SourceColumn.NUM_CHUNKS] = 0


def triton_forgets_a_private_token(tables):
    tables["private"][:, PageColumn.NUM_TOKENS] -= 1


def triton_swaps_pages(tables):
    tables["pages"][1:3] = tables["pages"][2:0:-1].copy()


def triton_causal_mask_off_by_one(tables):
    tables["causal"][:, SliceColumn.POSITION] -= 1


def triton_stores_one_place_early(tables):
    token = tables["targets"][:, TargetColumn.TOKEN]
    token[:] = np.maximum(token - 1, 0)


TRITON_FAULTS = [
    *(
        pytest.param(triton_tables_with(change), id=change.__name__)
        for change in (
            triton_shifts_a_slice,
            triton_sees_a_padded_key,
            triton_sees_one_key_less,
            triton_drops_a_chunk,
            triton_drops_a_level,
            triton_forgets_a_private_token,
            triton_swaps_pages,
            triton_causal_mask_off_by_one,
            triton_stores_one_place_early,
        )
    ),
    pytest.param(triton_kernel_with("LN_2", lambda _: 1.0), id="triton_base_two_logarithm"),
    pytest.param(
        triton_kernel_with("merge", lambda merge: lambda a, b, c, d, e, f, s: merge(a, b, c, d, b, f, s)),
        id="triton_forgotten_maximum",
    ),
    pytest.param(
        triton_kernel_with(
            "load_query", lambda load: lambda q, row, head, *a: load(q, row, 1 - head, *a), "blocks"
        ),
        id="triton_swapped_head_group",
    ),
    pytest.param(
        triton_kernel_with("operand", lambda _: lambda x, interpreted: x, "blocks"),
        id="triton_bfloat16_taken_for_integers",
    ),
]


def test_without_a_fault_the_check_passes():
    check()


@pytest.fixture
def small_chunks(monkeypatch, quick_interpreter):
    monkeypatch.setattr("treeshare.attention.triton.shape.CHUNK", 64)


@pytest.mark.usefixtures("small_chunks")
def test_without_a_fault_the_triton_check_passes():
    check_triton()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("fault", TRITON_FAULTS)
def test_the_triton_check_finds(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check_triton()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_check_finds(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):
        check()
