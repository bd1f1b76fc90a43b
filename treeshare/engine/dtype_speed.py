"""How fast linear layers are on a core of this CPU in each dtype; measured once and cached."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import nn

from treeshare.engine.machine import cached
from treeshare.models.checkpoint import DTYPES
from treeshare.models.linear import bind_linears

if TYPE_CHECKING:
    from treeshare.models import LoadedModel

_ROWS = 128
MIN_WIDTH, MAX_WIDTH = 256, 768
"""Other layers are measured as if they had the nearer of these widths: narrow ones take too little time, and
the rate of wide ones hardly differs."""

_REPEATS = 15
_FASTER = 1.15
"""A dtype is named where it is faster by more than measurements differ."""


class LinearRates(BaseModel):
    """What a core computes in a layer with 256 rows, by dtype.

    Attributes:
        gflops: Multiplications and additions per second, in units of 1e9.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    gflops: dict[str, float] = Field(min_length=1)

    def __str__(self) -> str:
        return ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in self.gflops.items()) + " GFLOP/s a core"

    def faster_than(self, dtype: str) -> str | None:
        """The dtype that is clearly faster than ``dtype``, or None."""
        best = max(self.gflops, key=self.gflops.__getitem__)
        return best if self.gflops[best] > _FASTER * self.gflops[dtype] else None


def linear_rates_here(hidden_size: int) -> LinearRates:
    """The rates of layers of a model's width on this machine, from the cache or measured now."""
    width = min(max(hidden_size, MIN_WIDTH), MAX_WIDTH)
    key = {"width": width, "rows": _ROWS}
    return cached("linear_rates", key, TypeAdapter(LinearRates), lambda: measure(width))


def faster_dtype(loaded: LoadedModel) -> str | None:
    """What the user is told where another dtype would be faster for a model, with the figures; else None."""
    if loaded.device.type != "cpu" or loaded.quantization:  # those layers are in neither
        return None
    rates = linear_rates_here(loaded.model.get_input_embeddings().embedding_dim)
    faster = rates.faster_than(loaded.dtype)
    return None if faster is None else f"--dtype {faster} is faster on this CPU (linear layers: {rates})"


def measure(width: int) -> LinearRates:
    """Time a layer from ``width`` inputs to four times as many outputs; dtypes take turns, minima count.

    By one thread and in its own seconds: several would wait for one another where other programs run.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(width)
    finally:
        torch.set_num_threads(num_threads)


def _measure(width: int) -> LinearRates:
    layers = {name: _layer(width, dtype) for name, dtype in DTYPES.items()}
    rows = {name: torch.ones(_ROWS, width, dtype=dtype) for name, dtype in DTYPES.items()}
    seconds = dict.fromkeys(DTYPES, float("inf"))
    for _ in range(_REPEATS + 1):  # the first time, memory is touched
        for name, layer in layers.items():
            started = time.thread_time()
            layer(rows[name])
            seconds[name] = min(seconds[name], time.thread_time() - started)
    work = 2 * _ROWS * width * 4 * width
    return LinearRates(gflops={name: round(work / s / 1e9, 1) for name, s in seconds.items()})


def _layer(width: int, dtype: torch.dtype) -> nn.Module:
    """A linear layer as models have it here: the compiled kernel's, or where there is none torch's."""
    layer = nn.Linear(width, 4 * width, bias=False, dtype=dtype).requires_grad_(requires_grad=False)
    bind_linears([layer])
    return layer
