"""The highest rates that this machine reaches, measured: the roof over a kernel's speed."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from attention_cases import HEADS
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BF16 = torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Roof:
    """What the machine does when nothing else limits it.

    Attributes:
        flops: Maximum floating-point operations per second of the bfloat16 matmuls.
        bandwidth: Bytes per second, read and written together.
    """

    flops: float
    bandwidth: float

    def seconds(self, flops: float, num_bytes: float) -> float:
        """The minimum time that the roof allows."""
        return max(flops / self.flops, num_bytes / self.bandwidth)


def median_seconds(
    runs: Sequence[Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median time of each call, by ``clock``; they take turns, after two rounds that warm up."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(repeats + 2):
        for run, taken in zip(runs, times, strict=True):
            started = clock()
            run()
            if number >= 2:
                taken.append(clock() - started)
    return [statistics.median(taken) for taken in times]


def measure_roof(size: int, repeats: int) -> tuple[Roof, list[list[str]]]:
    """The matmul rate and the bandwidth, and a table of what gave them."""
    rows, rates = [], []
    for dtype in (BF16, torch.float32):
        square, batch = torch.randn(size, size).to(dtype), torch.randn(HEADS, size // 2, size // 2).to(dtype)
        work = {
            f"linear {size} x {size} x {size}": (2.0 * size**3, lambda x=square: functional.linear(x, x)),
            f"bmm {HEADS} x {size // 2} cubed": (
                2.0 * HEADS * (size // 2) ** 3,
                lambda x=batch: torch.bmm(x, x),
            ),
        }
        for name, (flops, run) in work.items():
            rate = flops / median_seconds([run], repeats)[0]
            rates += [rate] if dtype == BF16 else []
            rows.append([f"{name}, {str(dtype).removeprefix('torch.')}", f"{rate / 1e9:.0f} GFLOP/s"])
    source = torch.ones(16 * size * size)  # far beyond the caches at the default size
    target = torch.empty_like(source)
    moved = {"copy": (2, lambda: target.copy_(source)), "read": (1, source.sum)}
    speeds = {
        name: times * source.numel() * 4 / median_seconds([run], max(3, repeats // 3))[0]  # type: ignore[arg-type]
        for name, (times, run) in moved.items()
    }
    rows += [
        [f"{name}, {source.numel() >> 18} MiB", f"{rate / 1e9:.1f} GB/s"] for name, rate in speeds.items()
    ]
    return Roof(flops=max(rates), bandwidth=max(speeds.values())), rows
