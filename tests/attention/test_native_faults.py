"""Known bugs around the compiled kernel, one at a time: in what a step tells it, and in what it reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.attention.budget import Forest, assert_within_budget
from tests.attention.faults import wrap
from tests.attention.test_seeded_faults import CASE
from treeshare.attention import NativeAttention, native_plan

NATIVE_DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)


FEATURED = replace(CASE, window=20, soft_cap=2.0, score_scale=2.0, has_sinks=True, value_dim=32, layer=1)
"""With a layer of another shape before it; the longest of the sequences has a page that is not seen."""


def check_native(case):
    """What the suite checks; pages that no row sees were given back, and hold another's numbers."""
    forest = Forest(case)
    forest.give_back_unseen(segments=False)  # its blocks of keys reach across segments
    assert_within_budget(forest, forest.attend(NativeAttention()))


def native_plan_with(change):
    """A fault that changes the arrays handed to the compiled kernel."""

    def patch(monkeypatch):
        def changed(make):
            def init(self, *a):
                make(self, *a)
                change(self)

            return init

        wrap(monkeypatch, native_plan.View, "__init__", changed)

    return patch


def drop_first_slice(view):
    view.slices["last_row"][0] = view.slices["first_row"][0]


def shift_slice(view):
    view.slices["last_row"][0] -= 1


def see_one_key_less(view):
    view.slices["num_keys"][0] -= 1


def forget_a_private_token(view):
    view.tokens[view.tokens > 0] -= 1


def swap_pages(view):
    view.pages[:2] = view.pages[1::-1].copy()


def write_one_place_early(view):
    own = view.slices["first_own_token"]
    own[own > 0] -= 1


def take_another_heads_keys(view):
    view.places.pieces["padded_tokens"] //= 2


def forget_the_causal_mask(view):
    view.slices["causal"] = 0


NATIVE_FAULTS = [
    drop_first_slice,
    shift_slice,
    see_one_key_less,
    forget_a_private_token,
    swap_pages,
    write_one_place_early,
    forget_the_causal_mask,
    take_another_heads_keys,
]


def see_what_a_page_hides(view):
    view.hidden_tokens[:] = 0


def hide_a_token_more(view):
    view.hidden_tokens[view.hidden_tokens > 0] += 1


def read_a_page_that_was_given_back(view):
    view.pages[-2] -= 1


def place_slices_elsewhere(view):
    view.slices["first_position"] += 1


def wider_window(view):
    view.first_seen[view.first_seen > 0] -= 1


def narrower_window(view):
    view.first_seen[view.first_seen > 0] += 1


def native_call_with(change):
    """A fault that changes what a call is told."""

    def patch(monkeypatch):
        def changed(attend):
            return lambda self, *a, **told: attend(self, *a, **(told | change(told)))

        wrap(monkeypatch, NativeAttention, "attend", changed)

    return patch


NATIVE_FEATURE_FAULTS = [
    *(
        pytest.param(native_plan_with(change), id=change.__name__)
        for change in (
            see_what_a_page_hides,
            hide_a_token_more,
            read_a_page_that_was_given_back,
            place_slices_elsewhere,
            wider_window,
            narrower_window,
        )
    ),
    *(
        pytest.param(native_call_with(change), id=name)
        for name, change in {
            "sink_counted_twice": lambda told: {"sinks": told["sinks"] + np.log(2)},
            "sink_forgotten": lambda told: {"sinks": None},
            "sinks_of_other_heads": lambda told: {"sinks": told["sinks"].flip(0)},
            "soft_cap_forgotten": lambda told: {"spec": replace(told["spec"], soft_cap=None)},
            "soft_cap_before_the_scale": lambda told: {
                "spec": replace(told["spec"], soft_cap=told["spec"].soft_cap * told["spec"].scale)
            },
            "kv_of_another_layer": lambda told: {"layer": 0},
        }.items()
    ),
]


@pytest.mark.usefixtures("each_kernel_level")
@NATIVE_DTYPES
@pytest.mark.parametrize("case", [CASE, FEATURED], ids=["plain", "featured"])
def test_without_a_fault_the_native_check_passes(case, dtype):
    check_native(replace(case, dtype=dtype))


@pytest.mark.usefixtures("each_kernel_level")
@NATIVE_DTYPES
@pytest.mark.parametrize("change", NATIVE_FAULTS, ids=lambda change: change.__name__)
def test_the_native_check_finds(change, dtype, monkeypatch):
    native_plan_with(change)(monkeypatch)
    with pytest.raises(AssertionError):
        check_native(replace(CASE, dtype=dtype))


@pytest.mark.usefixtures("each_kernel_level")
@NATIVE_DTYPES
@pytest.mark.parametrize("fault", NATIVE_FEATURE_FAULTS)
def test_the_native_check_of_features_finds(fault, dtype, monkeypatch):
    fault(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):
        check_native(replace(FEATURED, dtype=dtype))
