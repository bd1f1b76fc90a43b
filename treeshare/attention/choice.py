"""Which backend computes attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from treeshare.attention.cpu import CpuAttention
from treeshare.attention.native import NativeAttention
from treeshare.attention.reference import ReferenceAttention
from treeshare.config import require_choice
from treeshare.errors import ConfigError
from treeshare.stopwatch import OFF, Stopwatch

if TYPE_CHECKING:
    from treeshare.attention.api import AttentionBackend
    from treeshare.kv import KVGeometry

BackendName = Literal["auto", "native", "cpu", "reference"]


def make_backend(name: str, geometry: KVGeometry, stopwatch: Stopwatch = OFF) -> AttentionBackend:
    """Make a backend.

    Args:
        name: ``native`` (the compiled kernel), ``cpu`` (plain matmuls), ``reference`` (slow, the definition);
            ``auto`` takes the first of these that is there for such KV.
        geometry: Shape and dtype of the model's KV.
        stopwatch: Is told how long each kind of node took.

    Raises:
        ConfigError: If the name is unknown, or the kernel is asked for and not there.
    """
    require_choice("backend", name, get_args(BackendName))
    has_native = NativeAttention.supports(geometry)
    if name == "native" and not has_native:
        raise ConfigError.of(
            "backend",
            got=name,
            expected="a compiled kernel, bfloat16, AVX2 and a head_dim of whole sixteens",
            remedy="take auto",
        )
    if name == "reference":
        return ReferenceAttention(stopwatch=stopwatch)
    return NativeAttention(stopwatch) if has_native and name != "cpu" else CpuAttention(stopwatch)
