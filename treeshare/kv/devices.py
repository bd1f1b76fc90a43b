"""From the host to a device, without waiting for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def upload(array: NDArray[Any], device: torch.device, out: Tensor | None = None) -> Tensor:
    """``array`` on ``device``, in ``out`` if that is given; else on a CPU the tensor shares its memory.

    To a CUDA device it is copied from pinned memory in the order of the current stream, and nobody waits.
    """
    host = torch.from_numpy(array)
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True) if out is None else out.copy_(host, non_blocking=True)
