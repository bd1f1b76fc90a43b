"""Known bugs, patched in one at a time: the suite's check must fail for each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.attention.budget import Case, Forest, assert_within_budget
from treeshare.attention import CpuAttention, NativeAttention, cpu, layout, native

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


def wrap(monkeypatch, target, name, change):
    monkeypatch.setattr(target, name, change(getattr(target, name)))


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
    wrap(monkeypatch, layout, "_shared_groups", lambda groups: lambda slices: groups(slices)[1:])


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
        return lambda self, *a, **k: attend(self, *a, **(k | {"scale": 1.0}))

    wrap(monkeypatch, CpuAttention, "attend", change)


def padded_keys_seen(monkeypatch):
    wrap(monkeypatch, layout, "_key_padding", lambda _: lambda run: None)


def unwritten_page_keys_seen(monkeypatch):
    def change(pages):
        return lambda *a: replace(p := pages(*a), unwritten=torch.zeros_like(p.unwritten))

    wrap(monkeypatch, layout, "_private_pages", change)


def one_private_token_missed(monkeypatch):
    def change(pages):
        return lambda *a: replace(p := pages(*a), unwritten=p.unwritten.roll(-1, 1) | p.unwritten)

    wrap(monkeypatch, layout, "_private_pages", change)


def oldest_page_dropped(monkeypatch):
    def change(pages):
        return lambda *a: replace(p := pages(*a), ordinals=p.ordinals[1:])

    wrap(monkeypatch, layout, "_private_pages", change)


def causal_mask_off_by_one(monkeypatch):
    def change(attend):
        def attend_dense(query, keys_t, values, masked):
            if masked is not None and masked.dim() == 2:
                masked = masked.roll(1, 1) & masked
            return attend(query, keys_t, values, masked)

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


NATIVE_CASE = replace(CASE, dtype=torch.bfloat16)


def check_native():
    forest = Forest(NATIVE_CASE)
    assert_within_budget(forest, forest.attend(NativeAttention()))


def native_plan_with(change):
    """A fault that changes the arrays handed to the compiled kernel."""

    def patch(monkeypatch):
        def changed(make):
            def init(self, *a):
                make(self, *a)
                change(self)

            return init

        wrap(monkeypatch, native._Plan, "__init__", changed)

    return patch


def drop_first_slice(plan):
    plan._slices[0, 1] = plan._slices[0, 0]


def shift_slice(plan):
    plan._slices[0, 1] -= 1


def see_one_key_less(plan):
    plan._slices[0, 2] -= 1


def forget_a_private_token(plan):
    plan._tokens[plan._tokens > 0] -= 1


def swap_pages(plan):
    plan._pages[:2] = plan._pages[1::-1].copy()


def write_one_place_early(plan):
    plan._slices[plan._slices[:, 3] > 0, 3] -= 1


NATIVE_FAULTS = [
    drop_first_slice,
    shift_slice,
    see_one_key_less,
    forget_a_private_token,
    swap_pages,
    write_one_place_early,
]


def test_without_a_fault_the_check_passes():
    check()


@pytest.mark.usefixtures("each_kernel_level")
def test_without_a_fault_the_native_check_passes():
    check_native()


@pytest.mark.usefixtures("each_kernel_level")
@pytest.mark.parametrize("change", NATIVE_FAULTS, ids=lambda change: change.__name__)
def test_the_native_check_finds(change, monkeypatch):
    native_plan_with(change)(monkeypatch)
    with pytest.raises(AssertionError):
        check_native()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_check_finds(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):
        check()
