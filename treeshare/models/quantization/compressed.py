"""Checkpoints that are int8 already: compressed-tensors' W8A8, with its own codes and scales.

That is: weights int8 with a scale for each output, symmetric; activations int8 with a scale for each row,
symmetric, made as the model runs. No transform. What such a file leaves as floats stays so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from treeshare.errors import ModelLoadError, UnsupportedModelError, one_line
from treeshare.failures import refusing
from treeshare.models.checkpoint import read_headers, resolve_dtype, weight_files
from treeshare.models.quantization.modules import bind_codes, placeholder
from treeshare.models.quantization.stored import made_model, read_endings
from treeshare.models.quantization.weights import Int8Weights, int8_format
from treeshare.models.tensor_names import shortened
from treeshare.native.int8 import PackedWeights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from treeshare.models.text_part import TextPart

_METHOD = "compressed-tensors"
_SCALE = "_scale"

_EXPECTED = {
    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
    "input_activations": {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "dynamic": True,
    },
}
"""What a group of layers must say of its numbers."""


def quantization_of(config: Any) -> dict[str, Any] | None:  # noqa: ANN401
    """How a checkpoint's files are quantised, as its configuration says it; None if they are not."""
    own = getattr(config, "quantization_config", None)
    if own is None or isinstance(own, dict):
        return own
    return dict(own.to_dict())


def require_w8a8(own: Mapping[str, Any], name: str) -> None:
    """Refuse a checkpoint that is quantised otherwise.

    Args:
        own: As ``quantization_of`` gives it.
        name: What the user calls the model.

    Raises:
        UnsupportedModelError: Naming what is not known.
    """
    remedy = "load the model that it was made of"
    method = own.get("quant_method")
    if method != _METHOD or own.get("format") != "int-quantized":
        shown = one_line(f"{method}, {own.get('format')}" if method == _METHOD else method, 80)
        raise UnsupportedModelError(
            f"{name}: int8 weights: its files are quantised already ({shown}); {remedy}"
        )
    groups = own.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, dict) else []
    found = [part for group in groups for part in _differences(group)] if groups else ["config_groups"]
    for field in ("kv_cache_scheme", "sparsity_config"):
        if own.get(field):
            found.append(field)
    if found:
        raise UnsupportedModelError(
            f"{name}: int8 weights: not {_METHOD}' W8A8 by channel and token: {shortened(found)}; {remedy}"
        )


def _differences(group: Any) -> list[str]:  # noqa: ANN401
    """Fields of a group that are not as expected."""
    if not isinstance(group, dict):
        return ["config_groups"]
    wrong = ["output_activations"] if group.get("output_activations") else []
    for part, fields in _EXPECTED.items():
        own = group.get(part)
        own = own if isinstance(own, dict) else {}
        wrong += [
            f"{part}.{field} {own.get(field)!r}" for field, value in fields.items() if own.get(field) != value
        ]
    return wrong


def read_compressed(part: TextPart, source: str, name: str, dtype: str) -> Any:  # noqa: ANN401
    """The model of a W8A8 checkpoint, its linear layers by the file's own codes.

    Args:
        part: What ``read_part`` found; ``require_w8a8`` holds of its configuration.
        source: A folder or a hub id.
        name: What the user calls it.
        dtype: ``auto``, ``float32`` or ``bfloat16``: of everything else.

    Raises:
        ModelLoadError: If the files cannot be read, or lack weights or scales.
    """
    from safetensors.torch import load_file

    config = part.config
    files = weight_files(source, config, download=True)
    kind = resolve_dtype(config, dtype, read_headers(files, name))
    with refusing(f"model: cannot load {name}", "get its files again"):
        read = {key: value for file in files for key, value in load_file(file).items()}
        tensors = {part.name_of(key): value for key, value in read.items()}
        coded = {key: value for key, value in tensors.items() if value.dtype == torch.int8}
        lost = [key for key in coded if f"{key}{_SCALE}" not in tensors]
        if lost or not coded:
            raise ModelLoadError(
                f"model: cannot load {name}: "
                + (f"codes without scales: {shortened(lost)}" if lost else "none of its weights is int8")
            )
        scales = {key: tensors.pop(f"{key}{_SCALE}").float().reshape(-1) for key in coded}
        state = {key: value.to(kind) for key, value in tensors.items() if key not in coded}
        state |= {key: placeholder(value.shape, kind).data for key, value in coded.items()}
        del config.quantization_config
        model = made_model(name, config, part.model_class, state, kind)
        bind_codes(
            model,
            {
                key.removesuffix(".weight"): _packed(model, key, codes, scales[key])
                for key, codes in coded.items()
            },
        )
    read_endings(model, source, name)
    return model


def _packed(model: nn.Module, key: str, codes: Tensor, scales: Tensor) -> Int8Weights:
    module = model.get_submodule(key.removesuffix(".weight"))
    if type(module) is not nn.Linear or codes.shape != module.weight.shape or len(scales) != len(codes):
        raise ModelLoadError(f"{key}: {len(scales)} scales of codes {list(codes.shape)} of no linear layer")
    layout = int8_format(codes.shape[1], transform=1)
    rows = layout.rows(len(codes)).zero_()
    layout.codes_of(rows)[:, : codes.shape[1]] = codes
    layout.scales_of(rows)[:, 0] = scales
    packed = PackedWeights.empty(layout, len(codes), module.bias)
    packed.pack(rows)
    return Int8Weights(packed)
