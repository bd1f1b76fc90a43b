"""lm-eval's name of a device as ``LLM`` takes it."""

from __future__ import annotations

import logging

from treeshare.devices import resolve_device

_LOG = logging.getLogger(__name__)

_COMMAND_DEFAULT = "cuda:0"


def engine_device(name: str | None) -> str:
    """The device for ``LLM``: the same, or ``auto`` without a name.

    lm-eval's command line says ``cuda:0`` when its user says nothing. Where ``LLM`` would not take a CUDA
    device by itself, because there is none or Triton is missing, this means the CPU, as it does for lm-eval's
    ``hf`` model without a GPU.

    Args:
        name: What lm-eval passes as ``device``.
    """
    if name is None:
        return "auto"
    if name == _COMMAND_DEFAULT and resolve_device("auto") == "cpu":
        _LOG.warning("device: no CUDA device can be used here, so the model runs on the CPU.")
        return "cpu"
    return name
