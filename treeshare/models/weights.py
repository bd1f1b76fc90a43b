"""Changing a loaded model's weights in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@torch.no_grad()
def change_weights(model: Any, weights: Mapping[str, Tensor]) -> bool:  # noqa: ANN401
    """Copy new values into a model's weights: all, or none if anything goes wrong.

    Takes the memory of the changed weights once more while it works.

    Args:
        model: A transformers model.
        weights: New values by name in the model's state dict, of the same shapes; others stay. They may be
            the model's own tensors, in other places.

    Returns:
        Whether KV that the model has computed is outdated: not if only the output layer changed, and no
        other layer shares its weights.

    Raises:
        ConfigError: If a name is not known, or a value is no tensor of its shape or cannot be copied; nothing
            was changed.
    """
    held = model.state_dict()
    _check(held, weights)
    storages = {_storage(tensor) for tensor in held.values()}
    values = {
        name: value.clone() if _storage(value) in storages else value for name, value in weights.items()
    }
    below_head = {parameter.data_ptr() for parameter in model.base_model.parameters()}
    old: dict[str, Tensor] = {}
    try:
        for name, value in values.items():
            old[name] = held[name].clone()
            held[name].copy_(value)
    except BaseException as error:  # also an interrupt: half of the new weights are no model
        for name, before in reversed(old.items()):  # of two names for one weight the first knew what it was
            held[name].copy_(before)
        if isinstance(error, Exception):
            raise ConfigError(f"weights[{name!r}]: cannot be copied, nothing is changed: {error}") from error
        raise
    return any(held[name].data_ptr() in below_head for name in weights)


def _check(held: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Refuse what is not new values for tensors of ``held``."""
    if not isinstance(weights, Mapping):
        raise ConfigError.of(
            "weights", got=type(weights).__name__, expected="a mapping from names to tensors"
        )
    for name, value in weights.items():
        place = f"weights[{name!r}]"
        if name not in held:
            raise ConfigError.of(place, got="an unknown name", expected="a name in the model's state dict")
        if not isinstance(value, torch.Tensor):
            raise ConfigError.of(place, got=type(value).__name__, expected="a tensor")
        if tuple(value.shape) != tuple(held[name].shape):
            expected = f"the shape {tuple(held[name].shape)}"
            raise ConfigError.of(place, got=tuple(value.shape), expected=expected)
        if value.device.type == "meta":
            raise ConfigError.of(place, got="a tensor on the meta device", expected="one with values")
        if value.is_complex() and not held[name].is_complex():
            raise ConfigError.of(place, got=str(value.dtype), expected="real numbers")


def _storage(tensor: Tensor) -> int:
    """Where a tensor's memory begins; 0 where it has none of its own, as a sparse one."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0
