"""What this machine has, and how data reaches its devices: memory, processor, CUDA.

Torch is imported on use: a caller that only asks for memory does not wait for it.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import sys
from typing import TYPE_CHECKING, Any

from treeshare.control_groups import memory_limit
from treeshare.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

FREE_MEMORY_SHARE = 0.5
"""Share of the free memory that KV may take when no budget is given."""


def default_kv_budget_bytes(device: str = "cpu") -> int:
    """Half of the free memory of a device, in bytes; see ``free_memory_bytes`` for the host."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0] * FREE_MEMORY_SHARE)
    return int(free_memory_bytes() * FREE_MEMORY_SHARE)


def free_memory_bytes() -> int:
    """What the host reports as available, within the limits of the process's control groups."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit()
    return available if limit is None else min(available, limit.free_bytes)


def resolve_device(name: str, quantization: str | None = None) -> str:
    """``auto``: ``cuda`` where there is such a device and Triton to use it, else ``cpu``; others unchanged.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        quantization: Of the model; with any, ``auto`` is the CPU, which alone computes it.

    Raises:
        ConfigError: If the device is not available.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if name == "auto" and quantization:
        return "cpu"
    if name == "auto":
        return "cuda" if has_cuda and importlib.util.find_spec("triton") is not None else "cpu"
    kind, _, number = name.partition(":")
    is_available = (
        kind == "cuda"
        and has_cuda
        and (not number or (number.isdecimal() and int(number) < torch.cuda.device_count()))
    )
    if name != "cpu" and not is_available:
        raise ConfigError.of("device", got=name, expected="auto, cpu, or an available CUDA device")
    return name


def upload(array: NDArray[Any], device: torch.device, out: Tensor | None = None) -> Tensor:
    """``array`` on ``device``: in ``out`` if it is given; else on a CPU the tensor shares the array's memory.

    To a CUDA device it is copied from pinned memory, in the order of the current stream, without waiting.
    """
    import torch

    host = torch.from_numpy(array)
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True) if out is None else out.copy_(host, non_blocking=True)


def peak_resident_bytes() -> int:
    """Maximum memory that this process has had; after a fork ``getrusage`` would count the parent's, too."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # no Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10


def cpu_name() -> str:
    """The processor's name as the system gives it; empty where it gives none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(
                (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), ""
            )
    except OSError:
        return ""
