"""Refuses a model at load time, by name, if it needs what is not implemented, instead of being wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from treeshare.errors import UnsupportedModelError
from treeshare.kv import KVGeometry, LayerKV
from treeshare.models.step import AttentionCall, NoAttention, running

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from treeshare.attention import AttentionBackend, AttentionSpec

_ROPE_BY_LENGTH = frozenset({"dynamic", "longrope"})
"""Kinds of rotary embedding that depend on the longest sequence of a batch."""

_WINDOW_FIELDS = ("sliding_window", "sliding_window_size", "local_attention", "attention_window_size")
"""Fields of configurations that hold a window's length."""

_SIZES = ("hidden_size", "num_attention_heads", "num_hidden_layers")
"""Fields that every configuration has under these names, or under others that stand for them."""


def max_model_len(config: Any) -> int:  # noqa: ANN401
    """Maximum tokens of a sequence, prompt and completion together, by the model's number of positions."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1 << 20


def num_kv_heads(config: Any) -> int:  # noqa: ANN401
    """Heads of keys and values of each layer, as a configuration gives them."""
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads


def head_dim(config: Any) -> int:  # noqa: ANN401
    """Width of a head, as a configuration gives it."""
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width


def unsupported_features(model: Any) -> list[str]:  # noqa: ANN401
    """Name each feature of ``model`` that treeshare does not implement.

    A configuration whose sizes differ between layers, or are another configuration's, is not looked at
    further: its other fields are not there to be read.
    """
    config = model.config
    sizes = foreign_sizes(config)
    if sizes and "without" not in sizes:
        return [sizes]
    windows, rope_types = _windows(config), _rope_types_by_length(model)
    soft_cap = getattr(config, "attn_logit_softcapping", None)
    known_kinds = {"full_attention", "sliding_attention", "attention"}
    other_kinds = sorted(set(getattr(config, "layer_types", None) or ()) - known_kinds)
    checks = {
        str(sizes): sizes,
        "encoder-decoder architecture": getattr(config, "is_encoder_decoder", False),
        "bidirectional attention": getattr(config, "is_causal", True) is False
        or getattr(config, "use_bidirectional_attention", None),
        f"sliding-window attention (window {', '.join(map(str, windows))})": windows,
        f"layers of type {', '.join(other_kinds)}": other_kinds,
        f"attention soft-capping ({soft_cap})": soft_cap is not None,
        "ALiBi position biases": _has_alibi(config),
        "multi-head latent attention": getattr(config, "kv_lora_rank", None),
        "cross-attention": getattr(config, "add_cross_attention", False),
        "attention sinks": any(name.endswith(".sinks") for name, _ in model.named_parameters()),
        f"rotary embedding that depends on the batch (rope_type {', '.join(rope_types)})": rope_types,
        "attention whose temperature grows with the row's place (attn_temperature_tuning)": _is_tuned(config),
        "model code without transformers' attention interface": not getattr(
            model, "_supports_attention_backend", False
        ),
    }
    return [feature for feature, needed in checks.items() if needed]


def foreign_sizes(config: Any) -> str | None:  # noqa: ANN401
    """Why the fields of a configuration are not those of all the model's layers; None where they are."""
    try:
        lacking = [name for name in _SIZES if not isinstance(getattr(config, name, None), int)]
    except RuntimeError:  # transformers' for a field that differs between layers
        return "fields that differ between layers"
    if getattr(config, "is_heterogeneous", False):
        return "fields that differ between layers"
    if lacking and config.get_text_config() is not config:
        return "a composite configuration (its sizes are those of a text model inside)"
    return f"a configuration without {', '.join(lacking)}" if lacking else None


def _has_alibi(config: Any) -> bool:  # noqa: ANN401
    return (
        bool(getattr(config, "alibi", False))
        or getattr(config, "position_embedding_type", None) == "alibi"
        or getattr(config, "model_type", "") in ("bloom", "mpt")
    )


def _is_tuned(config: Any) -> bool:  # noqa: ANN401
    """Whether layers without rope scale queries by a row's place in the call, as Llama 4's do."""
    if not getattr(config, "attn_temperature_tuning", None):
        return False
    return getattr(config, "floor_scale", 0) <= max_model_len(config) and 0 in (
        getattr(config, "no_rope_layers", None) or [0]
    )


def _rope_types_by_length(model: Any) -> list[str]:  # noqa: ANN401
    """Kinds of the model's rotary embeddings that depend on a call's longest sequence.

    Said by a field of the configuration, a field for each layer type inside it, or the module itself.
    """
    found: set[str] = set()
    for name in ("rope_parameters", "rope_scaling"):
        rope = getattr(model.config, name, None)
        parts = [rope, *rope.values()] if isinstance(rope, dict) else []
        found.update(str(part.get("rope_type", part.get("type"))) for part in parts if isinstance(part, dict))
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        found.update(map(str, kind.values()) if isinstance(kind, dict) else [str(kind)])
    return sorted(kind for kind in found if any(part in kind for part in _ROPE_BY_LENGTH))


def _windows(config: Any) -> list[int]:  # noqa: ANN401
    """The windows that the model uses and a sequence can outgrow, by any of the fields that name one."""
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "use_sliding_window", True) is False or (kinds and "sliding_attention" not in kinds):
        return []
    values = {getattr(config, name, None) for name in _WINDOW_FIELDS}
    return sorted(window for window in values if isinstance(window, int) and window < max_model_len(config))


class _Recorder:
    """A step that records the model's calls of attention.

    Attributes:
        calls: As they came.
        layers: The KV that they need.
    """

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []
        self.layers: list[LayerKV] = []
        self._stored: list[tuple[Tensor, Tensor]] = []  # kept, so that no other tensor gets their addresses

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec, sinks: Tensor | None = None
    ) -> Tensor:
        """See ``StepAttention``."""
        heads = query.shape[1]
        for layer, (stored_key, stored_value) in enumerate(self._stored):
            if _is_same(stored_key, key) and _is_same(stored_value, value):
                self.calls.append(AttentionCall(layer=layer, spec=spec, num_heads=heads, writes=False))
                break
        else:
            self.calls.append(AttentionCall(layer=len(self.layers), spec=spec, num_heads=heads))
            shape = LayerKV(num_heads=key.shape[1], key_width=key.shape[2], value_width=value.shape[2])
            self.layers.append(shape)
            self._stored.append((key, value))
        return NoAttention().attend(query, key, value, spec, sinks)


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in memory."""
    return (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())


@torch.inference_mode()
def discover_calls(model: Any) -> tuple[KVGeometry, tuple[AttentionCall, ...]]:  # noqa: ANN401
    """Find the shape of the model's KV, and what its calls of attention compute, by running it on one token.

    A call that is given the keys and values of an earlier one reads that one's. A window or chunk as long as
    the longest sequence counts as none.

    Raises:
        UnsupportedModelError: If it calls no attention.
    """
    recorder = _Recorder()
    with running(recorder):
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=False)
    if not recorder.calls:
        raise UnsupportedModelError(f"{model.config.model_type}: not implemented: layers without attention")
    geometry = KVGeometry(layers=tuple(recorder.layers), dtype=model.dtype)
    longest = max_model_len(model.config)
    return geometry, tuple(replace(call, spec=_needed(call.spec, longest)) for call in recorder.calls)


def _needed(spec: AttentionSpec, longest: int) -> AttentionSpec:
    """The same without a window or chunk that no sequence outgrows."""
    is_wide = spec.window is not None and spec.window >= longest
    is_whole = spec.chunk is not None and spec.chunk >= longest
    return replace(spec, window=None if is_wide else spec.window, chunk=None if is_whole else spec.chunk)


def require_support(
    backend: AttentionBackend | type[AttentionBackend],
    calls: Iterable[AttentionCall],
    model_type: str,
) -> None:
    """Refuse a model whose layers need what a backend does not compute.

    Raises:
        UnsupportedModelError: Naming the backend and each feature that it lacks.
    """
    missing = sorted({feature for call in calls for feature in call.spec.features - backend.features})
    if missing:
        raise UnsupportedModelError(
            f"{model_type}: not implemented by attention {backend.name}: {'; '.join(missing)}"
        )
