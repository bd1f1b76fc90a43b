"""Rejects a model by name at load time if it needs what is not implemented, instead of being wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treeshare.config import require_int
from treeshare.errors import UnsupportedModelError
from treeshare.models.rope import unknown_ropes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from treeshare.attention import AttentionBackend
    from treeshare.models.step import AttentionCall

_LAYER_KINDS = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "attention", "moe", "mlp", "dense", "sparse"}
)
"""Types of layers that are attention over keys of earlier tokens, or have none."""

_KIND_REASONS = {
    "sparse attention": ("sparse", "indexed", "compressed"),
    "recurrent or convolutional state": ("linear", "mamba", "conv", "recurrent", "hybrid"),
}
"""What layers of other types need, by parts of the types' names."""

_SIZES = ("hidden_size", "num_attention_heads", "num_hidden_layers")
"""Fields that every configuration has under these names, or under others that stand for them."""


def max_model_len(config: Any) -> int:  # noqa: ANN401
    """Maximum tokens of a sequence, prompt and completion together, by the model's number of positions."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1 << 20


def longest_sequence(config: Any, limit: int | None) -> int:  # noqa: ANN401
    """``max_model_len`` of a configuration, or less if the user wants less.

    Raises:
        ConfigError: If ``limit`` is more than that, or less than two.
    """
    longest = max_model_len(config)
    if limit is None:
        return longest
    require_int("max_model_len", limit, low=2, high=longest)
    return limit


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
    rope_types = unknown_ropes(model)
    checks = {
        str(sizes): sizes,
        "bidirectional attention": getattr(config, "is_causal", True) is False
        or getattr(config, "use_bidirectional_attention", None) not in (None, False, "vision"),
        "ALiBi position biases": _has_alibi(config),
        "cross-attention": getattr(config, "add_cross_attention", False),
        "positions that count from pad_token_id": any(
            hasattr(module, "create_position_ids_from_input_ids") for module in model.modules()
        ),
        f"rotary embedding that depends on the batch (rope_type {', '.join(rope_types)})": rope_types,
    }
    return _unknown_layers(config) + [feature for feature, needed in checks.items() if needed]


def other_kind(config: Any) -> str | None:  # noqa: ANN401
    """What a model is that generates no text on its own, though transformers has a causal class for it."""
    from transformers.models.auto import modeling_auto

    kind = getattr(config, "model_type", "")
    if getattr(config, "is_encoder_decoder", False):
        return "an encoder-decoder"
    halves = (
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        {"trocr", "musicgen_decoder", "musicgen_melody_decoder"},
    )
    if any(kind in names for names in halves):
        return "the decoder half of an encoder-decoder"
    is_decoder = getattr(config, "is_decoder", True)
    if kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not is_decoder:
        return "an encoder: is_decoder is not set"
    return None


def _unknown_layers(config: Any) -> list[str]:  # noqa: ANN401
    """What layers need whose type says that they are more than attention over earlier tokens."""
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_KINDS)
    reasons: dict[str, list[str]] = {}
    for kind in kinds:
        known = (why for why, parts in _KIND_REASONS.items() if any(part in kind for part in parts))
        reasons.setdefault(next(known, ""), []).append(kind)
    return [f"{why and why + ', '}layers of type {', '.join(names)}" for why, names in reasons.items()]


def foreign_sizes(config: Any) -> str | None:  # noqa: ANN401
    """Why the fields of a configuration are not those of all the model's layers; None where they are."""
    try:
        lacking = [name for name in _SIZES if not isinstance(getattr(config, name, None), int)]
    except RuntimeError:  # transformers' for a field that differs between layers
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
