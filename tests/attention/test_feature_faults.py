"""Known bugs of windows, soft caps, sinks and layers in ``cpu`` and ``triton``, patched in one at a time.

The compiled kernel's stand in ``test_native_faults.py``.
"""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.attention.budget import Case, Forest, assert_within_budget
from tests.attention.faults import triton_tables_with, wrap
from treeshare.attention import AttentionSpec, CpuAttention, TritonAttention, cpu, cpu_plan
from treeshare.attention.triton.columns import PageColumn, SliceColumn

CASE = Case(
    (-1, 0, 0, 2),
    (250, 30, 70, 12),
    ((1, 4), (1, 130), (0, 1), (3, 40)),
    prefilled=(2, 3),
    chunk=37,
    window=100,
    soft_cap=2.0,
    has_sinks=True,
    value_dim=32,
    score_scale=2.0,
    layer=1,
)
"""Behind a layer of another shape; one row sees no more of the root, another none of a page."""

TRITON_CASE = replace(
    CASE,
    parents=(-1, 0, 1),
    lengths=(250, 30, 12),
    decodes=((1, 4), (1, 130)),
    prefilled=(2,),
    chunk=7,
    num_kv_heads=1,
    group_size=2,
    head_dim=16,
)
"""Whose keys and values take less memory than those of the layer before it."""


def check(backend, case=CASE):
    forest = Forest(case)
    forest.give_back_unseen()
    assert_within_budget(forest, forest.attend(backend))


def check_triton():
    """Interpreted, and cut into chunks of one block of keys."""
    check(TritonAttention(Forest(TRITON_CASE).store.geometry, num_processors=1000), TRITON_CASE)


def window_with(change):
    """A fault in which key is the first that rows see."""

    def patch(monkeypatch):
        wrap(monkeypatch, AttentionSpec, "first_seen", lambda seen: lambda self, p: change(seen(self, p), p))

    return patch


WINDOW_FAULTS = {
    "window_one_shorter": window_with(lambda first, positions: torch.minimum(first + 1, positions)),
    "window_one_longer": window_with(lambda first, positions: (first - 1).clamp(min=0)),
    "window_from_the_first_row": window_with(lambda first, positions: first[:1].expand_as(first)),
    "window_forgotten": window_with(lambda first, positions: torch.zeros_like(first)),
}


def call_with(backend, change):
    """A fault that changes what a call is told."""

    def patch(monkeypatch):
        def changed(attend):
            return lambda self, *a, **told: attend(self, *a, **(told | change(told)))

        wrap(monkeypatch, backend, "attend", changed)

    return patch


CALL_FAULTS = {
    "sink_counted_twice": lambda told: {"sinks": told["sinks"] + np.log(2)},
    "sinks_of_other_heads": lambda told: {"sinks": told["sinks"].flip(0)},
    "sink_of_padding": lambda told: {"layout": replace(told["layout"], num_rows=told["layout"].num_rows + 1)},
    "soft_cap_forgotten": lambda told: {"spec": replace(told["spec"], soft_cap=None)},
    "soft_cap_before_the_scale": lambda told: {
        "spec": replace(told["spec"], soft_cap=told["spec"].soft_cap * told["spec"].scale)
    },
    "kv_of_another_layer": lambda told: {"layer": 0},
}


def sink_once_per_node(monkeypatch):
    """Each partial result has it."""

    def change(attend_dense):
        def attend(*a, **k):
            numerator, high = attend_dense(*a, **k)
            numerator[..., CASE.value_width] += (1 - high[..., 0]).exp()
            return numerator, high

        return attend

    wrap(monkeypatch, cpu, "_attend_dense", change)


def soft_cap_after_the_mask(monkeypatch):
    """What is hidden has the score ``-cap``, not none."""
    fill = torch.Tensor.masked_fill_

    def filled(self, mask, value):
        return fill(self, mask, -CASE.soft_cap if value == -torch.inf else value)

    monkeypatch.setattr(torch.Tensor, "masked_fill_", filled)


def shared_window_forgotten(monkeypatch):
    def change(groups):
        return lambda slices, first_seen: groups(slices, None)

    wrap(monkeypatch, cpu_plan, "_shared_groups", change)


def straddling_node_read_late(monkeypatch):
    def change(unseen_keys):
        def changed(*a):
            first_key, unseen = unseen_keys(*a)
            return first_key + 64, unseen

        return changed

    wrap(monkeypatch, cpu_plan, "_unseen_keys", change)


def node_outside_the_window_read(monkeypatch):
    """And its keys are taken for seen."""
    monkeypatch.setattr(cpu_plan, "seen_slices", lambda slices, first_seen: slices)
    wrap(monkeypatch, cpu_plan, "_unseen_keys", lambda unseen_keys: lambda *a: (0, None))


def private_window_forgotten(monkeypatch):
    def change(pages):
        return lambda *a: replace(p := pages(*a), unseen=p.unseen & ((~p.unseen).cumsum(1) > 0))

    wrap(monkeypatch, cpu_plan, "_private_pages", change)


def first_page_takes_the_last_ones_place(monkeypatch):
    def change(pages):
        return lambda *a: replace(p := pages(*a), repeated=p.repeated.roll(1))

    wrap(monkeypatch, cpu_plan, "_private_pages", change)


FAULTS = [
    *(pytest.param(fault, id=name) for name, fault in WINDOW_FAULTS.items()),
    *(pytest.param(call_with(CpuAttention, change), id=name) for name, change in CALL_FAULTS.items()),
    *(
        pytest.param(fault, id=fault.__name__)
        for fault in (
            sink_once_per_node,
            soft_cap_after_the_mask,
            shared_window_forgotten,
            straddling_node_read_late,
            node_outside_the_window_read,
            private_window_forgotten,
            first_page_takes_the_last_ones_place,
        )
    ),
]


def triton_window_forgotten(tables):
    tables["first_seen"][:] = 0


def triton_private_window_forgotten(tables):
    tables["private"][:, PageColumn.FIRST_TOKEN] = 0


def triton_private_window_off_by_one(tables):
    first = tables["private"][:, PageColumn.FIRST_TOKEN]
    first[first > 0] += 1


def triton_node_elsewhere(tables):
    tables["shared"][:, SliceColumn.START] += 1


def triton_straddling_node_read_late(tables):
    first = tables["shared"][:, SliceColumn.FIRST_KEY]
    first[first > 0] += 64


def triton_kv_of_another_layer(tables):
    tables["bases"][:] = tables["bases"][::-1].copy()


def triton_sink_in_base_two(monkeypatch):
    kernels = importlib.import_module("treeshare.attention.triton.kernels")
    monkeypatch.setattr(kernels, "LOG2_E", 1.0)


def triton_soft_cap_after_the_mask(monkeypatch):
    blocks = importlib.import_module("treeshare.attention.triton.blocks")
    attend, language, tanh = blocks.attend_block, blocks.tl, blocks.tanh

    def late(numerator, high, total, scores, values, seen, *a):
        capped = tanh(language.where(seen, scores, -1e30))
        return attend(numerator, high, total, capped, values, capped == capped, *a)

    monkeypatch.setattr(blocks, "tanh", lambda x: x)
    monkeypatch.setattr(blocks, "attend_block", late)


TRITON_FAULTS = [
    *(pytest.param(WINDOW_FAULTS[name], id=name) for name in ("window_one_shorter", "window_one_longer")),
    *(
        pytest.param(call_with(TritonAttention, CALL_FAULTS[name]), id=name)
        for name in (
            "sink_counted_twice",
            "sinks_of_other_heads",
            "soft_cap_forgotten",
            "soft_cap_before_the_scale",
        )
    ),
    *(
        pytest.param(triton_tables_with(change), id=change.__name__)
        for change in (
            triton_window_forgotten,
            triton_private_window_forgotten,
            triton_private_window_off_by_one,
            triton_node_elsewhere,
            triton_straddling_node_read_late,
            triton_kv_of_another_layer,
        )
    ),
    pytest.param(triton_sink_in_base_two, id="triton_sink_in_base_two"),
    pytest.param(triton_soft_cap_after_the_mask, id="triton_soft_cap_after_the_mask"),
]


def test_without_a_fault_the_check_passes():
    check(CpuAttention())


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_finds(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):
        check(CpuAttention())


@pytest.fixture
def small_chunks(monkeypatch, quick_interpreter):
    monkeypatch.setattr("treeshare.attention.triton.shape.CHUNK", 64)


@pytest.mark.usefixtures("small_chunks")
def test_without_a_fault_the_triton_check_passes():
    check_triton()


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")  # of the interpreter
@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("fault", TRITON_FAULTS)
def test_the_triton_check_finds(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):
        check_triton()
