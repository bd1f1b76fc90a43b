"""From the host to a device, without waiting for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """``array`` on ``device``; on a CPU the tensor shares its memory.

    To a CUDA device it is copied from pinned memory in the order of the current stream, and nobody waits.
    """
    host = torch.from_numpy(array)
    if device.type != "cuda":
        return host
    return host.pin_memory().to(device, non_blocking=True)
