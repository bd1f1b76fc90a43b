"""Changing a loaded model's weights in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from treeshare.errors import ConfigError
from treeshare.models.quantization import is_placeholder, weights_memory
from treeshare.models.tensor_names import shortened

if TYPE_CHECKING:
    from torch import Tensor


@torch.no_grad()
def change_weights(model: Any, weights: Mapping[str, Tensor]) -> bool:  # noqa: ANN401
    """Copy new values into a model's weights: all, or none if anything goes wrong.

    Takes the memory of the changed weights once more while it works. Int8 weights are quantised anew, from
    values rounded to the model's dtype, as those of its files are.

    Args:
        model: A transformers model.
        weights: New values by name in the model's state dict, of the same shapes; others stay. They may be
            the model's own tensors, in other places.

    Returns:
        Whether KV that the model has computed is outdated: not if only the output layer changed, and no
        other layer shares its weights.

    Raises:
        ConfigError: If a name is not known, a value is no tensor of its shape or cannot be copied, or two
            names of one weight come with different values; nothing was changed.
    """
    held = model.state_dict()
    _check(held, weights)
    _require_one_value(held, weights)
    storages = {_storage(tensor) for tensor in held.values()}
    values = {
        name: value.clone() if _storage(value) in storages else value for name, value in weights.items()
    }
    below_head = {parameter.data_ptr() for parameter in model.base_model.parameters()}
    memory = weights_memory(model, held)
    old: dict[str, Any] = {}
    try:
        for name, value in values.items():
            old[name] = memory[name].copied()
            memory[name].change(value)
    except BaseException as error:  # also an interrupt: half of the new weights are no model
        for changed, before in reversed(old.items()):  # of two names of a weight the first knew what it was
            memory[changed].put_back(before)
        if isinstance(error, Exception):
            raise ConfigError(
                f"weights[{name!r}]: cannot be copied; no weight was changed: {error}"
            ) from error
        raise
    return any(held[name].data_ptr() in below_head for name in weights)


def _require_one_value(held: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Refuse different values for one weight that has several names, as a tied head has."""
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, value in weights.items():
        other = first.setdefault((held[name].data_ptr(), tuple(held[name].shape)), name)
        if other != name and not torch.equal(value, weights[other].to(value)):
            raise ConfigError.of(
                f"weights[{name!r}]",
                got=f"a different value from weights[{other!r}]",
                expected="equal values: this model ties the two",
            )


def require_all_weights(model: Any, weights: Mapping[str, Tensor]) -> None:  # noqa: ANN401
    """Check that ``weights`` leave none of a model's weights as it was.

    Raises:
        ConfigError: Naming those that are not among them, under none of their names.
    """
    held = model.state_dict()
    given = {held[name].data_ptr() for name in weights if name in held}
    missing = [name for name, value in held.items() if value.numel() and value.data_ptr() not in given]
    if missing:
        raise ConfigError.of(
            "weights",
            got=f"{len(held) - len(missing)} of {len(held)}, without {shortened(missing)}",
            expected="all weights of the model that generates",
        )


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
        if is_placeholder(value) and value.data_ptr() == held[name].data_ptr():
            raise ConfigError.of(place, got="a placeholder of int8 weights", expected="a tensor with values")
        if value.is_complex() and not held[name].is_complex():
            raise ConfigError.of(place, got=str(value.dtype), expected="real numbers")


def _storage(tensor: Tensor) -> int:
    """Where a tensor's memory begins; 0 where it has none of its own, as a sparse one."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0
