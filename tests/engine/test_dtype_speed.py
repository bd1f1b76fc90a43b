"""Which dtype is said to be faster, and that it is the one whose layers take less time."""

from __future__ import annotations

import time

import pytest
import torch

from treeshare.engine import dtype_speed
from treeshare.engine.dtype_speed import LinearRates, faster_dtype
from treeshare.models import load_model
from treeshare.models.linear import uses_kernel
from treeshare.native import kernels


@pytest.mark.parametrize(
    ("float32", "bfloat16", "expected"),
    [
        (261, 164, {"bfloat16": "float32"}),
        (150, 1650, {"float32": "bfloat16"}),
        (100, 110, {}),
        (110, 100, {}),
    ],
)
def test_a_dtype_is_named_where_it_is_clearly_faster(float32, bfloat16, expected):
    rates = LinearRates(gflops={"float32": float32, "bfloat16": bfloat16})
    found = {dtype: rates.faster_than(dtype) for dtype in rates.gflops}
    assert {dtype: faster for dtype, faster in found.items() if faster} == expected


@pytest.mark.parametrize("slow", ["float32", "bfloat16"])
def test_what_takes_longer_is_slower(monkeypatch, slow):
    make = dtype_speed._layer

    def slowed(width, dtype):
        layer = make(width, dtype)

        def busy(x):
            deadline = time.thread_time() + 0.01
            while time.thread_time() < deadline:
                layer(x)

        return busy if str(dtype) == f"torch.{slow}" else layer

    monkeypatch.setattr(dtype_speed, "_layer", slowed)
    num_threads = torch.get_num_threads()
    rates = dtype_speed.measure(16)
    assert set(rates.gflops) == {"float32", "bfloat16"}
    assert rates.faster_than(slow) not in (None, slow)
    assert torch.get_num_threads() == num_threads


def test_the_layer_that_is_timed_is_the_models():
    """The compiled kernel, not torch's, where it is used."""
    for dtype in (torch.float32, torch.bfloat16):
        assert uses_kernel(dtype_speed._layer(16, dtype)) is (kernels(dtype) is not None)


def test_a_model_in_the_slower_dtype_is_told(model_dir, monkeypatch):
    widths = []
    fast = LinearRates(gflops={"float32": 261.0, "bfloat16": 164.0})
    monkeypatch.setattr(dtype_speed, "linear_rates_here", lambda width: (widths.append(width), fast)[1])
    loaded = load_model(model_dir("llama"), "bfloat16")
    assert faster_dtype(loaded) == f"--dtype float32 is faster on this CPU (linear layers: {fast})"
    assert str(fast) == "float32 261, bfloat16 164 GFLOP/s a core"
    assert faster_dtype(load_model(model_dir("llama"), "float32")) is None
    assert set(widths) == {loaded.model.config.hidden_size}
