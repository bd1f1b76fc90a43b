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
    name: str, geometry: KVGeometry, stopwatch: Stopwatch = OFF, *, device: torch.device | str = "cpu"
) -> AttentionBackend:
    """Make a backend.

    Args:
        name: ``native`` (the compiled kernel), ``cpu`` (plain matmuls), ``triton`` (CUDA, or interpreted),
            ``reference`` (slow, the definition); ``auto`` takes ``triton`` on a CUDA device, else ``native``
            where it is available and reads such KV, else ``cpu``.
        geometry: Shape and dtype of the model's KV.
        stopwatch: Is told how long each kind of node took.
        device: Where the KV lies.

    Raises:
        ConfigError: If the name is unknown, or the backend is not available or does not serve the device.
    """
    require_choice("backend", name, get_args(BackendName))
    on_cuda = torch.device(device).type == "cuda"
    if name == "triton" or (name == "auto" and on_cuda):
        return TritonAttention(geometry, device, stopwatch)
    if on_cuda:
        raise ConfigError.of("backend", got=name, expected="triton on a CUDA device", remedy="take auto")
    if kernel_level() == PORTABLE and name not in ("auto", "native"):
        raise ConfigError.of("backend", got=name, expected=f"native with TREESHARE_KERNELS={PORTABLE}")
    has_native = NativeAttention.can_read(geometry)
    if not has_native and (name == "native" or kernel_level() == PORTABLE):
        raise ConfigError.of(
            "backend",
            got=name,
            expected="a compiled kernel, bfloat16 or float32, AVX2 and a head_dim that is a multiple of 16",
            remedy="take auto",
        )
    if name == "reference":
        return ReferenceAttention(stopwatch=stopwatch)
    return NativeAttention(stopwatch) if has_native and name != "cpu" else CpuAttention(stopwatch)
