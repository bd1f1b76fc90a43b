"""Which backend computes attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from treeshare.attention.cpu import CpuAttention
from treeshare.attention.native import NativeAttention
from treeshare.attention.reference import ReferenceAttention
from treeshare.attention.triton import TritonAttention
from treeshare.config import require_choice
from treeshare.errors import ConfigError
from treeshare.native import PORTABLE, kernel_level
from treeshare.stopwatch import OFF, Stopwatch

if TYPE_CHECKING:
    from treeshare.attention.api import AttentionBackend
    from treeshare.kv import KVGeometry

BackendName = Literal["auto", "native", "cpu", "triton", "reference"]


def make_backend(
    name: str,
    geometry: KVGeometry,
    stopwatch: Stopwatch = OFF,
    *,
    device: torch.device | str = "cpu",
    level: str | None = None,
    in_codes: bool = False,
) -> AttentionBackend:
    """Make a backend.

    Args:
        name: ``native`` (the compiled kernel), ``cpu`` (plain matmuls), ``triton`` (CUDA, or interpreted),
            ``reference`` (slow, the definition); ``auto`` takes ``triton`` on a CUDA device, else ``native``
            where it is available and reads such KV, else ``cpu``.
        geometry: Shape and dtype of the model's KV.
        stopwatch: Is told how long each kind of node took.
        device: Where the KV lies.
        level: Whose kernels ``native`` takes; None: the process's, ``kernel_level()``.
        in_codes: Whether it multiplies prompts' keys and values in codes: where weights are int8.

    Raises:
        ConfigError: If the name is unknown, or the backend is not available or does not serve the device.
    """
    require_choice("backend", name, get_args(BackendName))
    on_cuda = torch.device(device).type == "cuda"
    if name == "triton" or (name == "auto" and on_cuda):
        return TritonAttention(geometry, device, stopwatch)
    if on_cuda:
        raise ConfigError.of("backend", got=name, expected="triton on a CUDA device", remedy="use auto")
    is_portable = (level or kernel_level()) == PORTABLE
    if is_portable and name not in ("auto", "native"):
        cause = f"TREESHARE_KERNELS={PORTABLE}" if kernel_level() == PORTABLE else "int8 weights"
        raise ConfigError.of("backend", got=name, expected=f"native with {cause}")
    has_native = NativeAttention.can_read(geometry, level)
    if not has_native and (name == "native" or is_portable):
        raise ConfigError.of(
            "backend",
            got=name,
            expected="kernels for this CPU, bfloat16 or float32, and keys whose width is a multiple of 4",
            remedy="use auto",
        )
    if name == "reference":
        return ReferenceAttention(stopwatch=stopwatch)
    if has_native and name != "cpu":
        return NativeAttention(stopwatch, level, in_codes=in_codes)
    return CpuAttention(stopwatch)
