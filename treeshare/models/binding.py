"""Binding a model to treeshare's attention, and its layers to the compiled kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from treeshare.errors import UnsupportedModelError
from treeshare.models.adapter import ATTENTION_NAME
from treeshare.models.calls import discover_calls
from treeshare.models.experts import bind_experts
from treeshare.models.fusion import FusedLayer, decoder_layers, fuse_layers, unfuse_layers
from treeshare.models.length_check import require_lengths
from treeshare.models.linear import bind_linears, unbind_linears
from treeshare.models.own_code import bind_own_code, bind_own_matmuls
from treeshare.models.portable import BY_LEVEL, Wish, fix_norms, fix_tables, refusal, require_fixed
from treeshare.models.quantization import weights_in_codes
from treeshare.models.self_check import SelfCheck, check_lengths
from treeshare.models.written_out import require_known_features, set_attention
from treeshare.native import PORTABLE, kernel_level

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from treeshare.kv import KVGeometry
    from treeshare.models.step import AttentionCall

_KERNEL_ERROR = 4.0
"""Maximum error of compiled layers against the model's own logits, in units of that of its own layers."""

_BY_CODES = Wish("int8 weights", "load it without quantization")


@dataclass(frozen=True, kw_only=True)
class BoundModel:
    """What is known of a model after binding it to treeshare's attention.

    Attributes:
        geometry: Shape of its KV.
        calls: Its calls of attention, in their order.
        fused: Its decoder layers where they are fused; else empty.
        unfused_reason: Why they are not; None where they are.
    """

    geometry: KVGeometry
    calls: tuple[AttentionCall, ...]
    fused: tuple[FusedLayer, ...] = ()
    unfused_reason: str | None = None


def bind_model(model: Any, *, use_kernels: bool = True) -> BoundModel:  # noqa: ANN401
    """Bind ``model`` to treeshare's attention, and its layers to kernels where that changes only rounding.

    Args:
        model: A transformers model on the CPU; changed in place.
        use_kernels: Whether its layers may be compiled kernels, which only read the CPU's memory.

    Raises:
        UnsupportedModelError: If it needs a feature that is not implemented.
    """
    model.eval()
    require_known_features(model)
    wish = _wish(model)
    if wish and not use_kernels:
        raise refusal(model.config.model_type, "compiled layers are the CPU's", wish)
    set_attention(model, ATTENTION_NAME)
    try:
        if wish:
            fix_tables(model, wish)
        geometry, calls = discover_calls(model)
        check = SelfCheck(model, geometry, calls)
        own_error = check.check()
        check_lengths(model, geometry, calls)
        require_lengths(model)
        if not use_kernels:
            reason = "compiled layers are the CPU's"
            return BoundModel(geometry=geometry, calls=calls, unfused_reason=reason)
        level = PORTABLE if wish else None
        mixtures = bind_experts(model, level) + bind_own_matmuls(model, level)
        fused, unfused_reason = fuse_layers(model, level)
        bound = mixtures + bind_linears(model.modules(), level) + _bind_rest(model, mixtures, fused, level)
        if wish:
            fix_norms(model)
        if (bound or fused) and not check.error() <= _allowed_error(check, own_error):
            unbind_linears(bound)
            unfuse_layers(model)
            fused, unfused_reason = [], "compiled layers are too far from the model's own logits"
        if wish:
            require_fixed(model, geometry, unfused_reason, wish)
    except TypeError as error:
        raise UnsupportedModelError(
            f"{model.config.model_type}: its forward lacks what packed rows need ({error})"
        ) from error
    return BoundModel(geometry=geometry, calls=calls, fused=tuple(fused), unfused_reason=unfused_reason)


def _bind_rest(
    model: Any,  # noqa: ANN401
    mixtures: list[nn.Module],
    fused: Sequence[FusedLayer],
    level: str | None,
) -> list[nn.Module]:
    """Compute row by row what mixtures' layers compute in code of their own; returns these modules."""
    if not mixtures:
        return []
    layers = decoder_layers(model)
    return bind_own_code([forward.block for forward in fused if forward.block] if fused else layers, level)


def _allowed_error(check: SelfCheck, own_error: float) -> float:
    """The largest error of compiled layers; those of int8 weights were judged one by one, by less."""
    if check.has_codes:
        return check.limit
    return _KERNEL_ERROR * max(own_error, torch.finfo(check.dtype).eps)


def _wish(model: Any) -> Wish | None:  # noqa: ANN401
    """Who asked for the same bits on every CPU; None if nobody did."""
    if weights_in_codes(model):
        return _BY_CODES
    return BY_LEVEL if kernel_level() == PORTABLE else None
