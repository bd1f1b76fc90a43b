"""What a GGUF file says of its model, held against what transformers made of it.

transformers passes over metadata and tensors that it does not know. Some of them change what the model
computes: such a file is refused by their names.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from treeshare.errors import ModelLoadError, one_line
from treeshare.models.gguf_rope import ROPE_KEYS, OtherRope, set_rope
from treeshare.models.support import head_dim, num_kv_heads
from treeshare.models.tensor_names import shortened

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

_DEFAULT_ROPE_BASE = 10000.0
"""llama.cpp's, where a file says nothing."""

_LARGE_GEMMAS = {"gemma2": 46, "gemma3_text": 62}
"""Layers of the Gemmas whose queries are scaled by another width than their heads'; no file says it."""

READ = frozenset(
    (
        *("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "phi3", "gemma2", "gemma3"),
        *("stablelm", "starcoder2", "nemotron", "falcon", "gpt2", "bloom", "minimax-m2"),
    )
)
"""Architectures, by llama.cpp's names, of which transformers makes the model that the file means."""

_REQUIRED = ("block_count", "embedding_length", "attention.head_count")

_WITHOUT_EFFECT = frozenset(
    {
        "context_length",
        "vocab_size",
        "rope.scaling.finetuned",
        "tensor_data_layout",
        "expert_feed_forward_length",  # a weight's size, like the next ones: loading compares sizes
        "feed_forward_length",
        "attention.value_length",
        "attention.key_length",
        "expert_shared_feed_forward_length",
        "attention.layer_norm_epsilon",  # compared below
        "attention.layer_norm_rms_epsilon",
        "attention.head_count_kv",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.freq_base_swa",
        "attention.sliding_window_pattern",
        "attention.causal",
        "expert_gating_func",
        *_REQUIRED,
    }
)
"""Metadata of a model that transformers need not pass on, or that is compared here."""

_NEUTRAL: dict[str, Any] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.causal": True,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "logit_scale": 1.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "attention.sliding_window": 0,
    "use_parallel_residual": False,
    "attention.scale": 0.0,
    "expert_weights_norm": None,
    "expert_weights_scale": 1.0,
    "expert_group_count": 1,
    "leading_dense_block_count": 0,
}
"""Metadata that changes nothing with this value, and with another what transformers does not compute."""

_CONFIG_NAMES = {
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "use_parallel_residual": ("use_parallel_residual",),
    "expert_weights_norm": ("norm_topk_prob",),
}
"""Fields of a configuration that may carry such a value."""


_SIZES = {
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}
"""Fields of configurations that transformers leaves at a class's default, and the metadata that say them."""

_BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
"""Fields of configurations that say whether there are biases, and a tensor that is there if so."""


_SOFTMAX, _SIGMOID = 1, 2
"""How a router's logits become weights, as llama.cpp counts it."""


def require_metadata(metadata: Mapping[str, Any], tensors: Collection[str], path: Path) -> None:
    """Refuse an architecture that is not read, lost metadata, and more layers than there are tensors.

    What is lost transformers would replace by a default, and such layers it would build for hours.

    Raises:
        ModelLoadError: Naming what is lacking.
    """
    architecture = metadata["general.architecture"]
    if architecture not in READ:
        raise ModelLoadError(
            f"model: {path}: not implemented: a GGUF file of architecture {one_line(architecture, 40)}; "
            "use the model's safetensors instead"
        )
    front = f"{architecture}."
    lost = [front + key for key in _REQUIRED if front + key not in metadata]
    if lost:
        raise ModelLoadError(f"model: {path} lacks metadata: {shortened(lost)}")
    layers = metadata[front + "block_count"]
    if not isinstance(layers, int) or not 0 < layers <= len(tensors):
        raise ModelLoadError(
            f"model: {path}: {front}block_count: got {one_line(layers, 80)}, "
            f"expected a number of layers for its {len(tensors)} tensors"
        )


def require_meaning(
    metadata: Mapping[str, Any],
    tensors: Collection[str],
    rope: Mapping[str, Sequence[float]],
    config: Any,  # noqa: ANN401
    path: Path,
) -> list[str]:
    """Complete a configuration by the file's numbers, and refuse what else transformers left out.

    Args:
        metadata: The file's, for which ``require_metadata`` holds, lists of texts as their lengths.
        tensors: The names of its tensors.
        rope: The numbers of its rope's tensors.
        config: The configuration that transformers made of it; changed in place.
        path: The file.

    Returns:
        Keys of the model's metadata of which it is not known whether they change anything.

    Raises:
        ModelLoadError: Naming what is left out.
    """
    front = f"{metadata['general.architecture']}."
    own = {key.removeprefix(front): value for key, value in metadata.items() if key.startswith(front)}
    _complete(config, own, tensors)
    left_out = []
    try:
        set_rope(config, own, rope)
    except OtherRope as error:
        left_out.append(str(error))
    left_out += [
        f"{front}{key} ({own[key]})"
        for key, neutral in _NEUTRAL.items()
        if _changes(own, key, neutral, config)
    ]
    gate = _SIGMOID if config.model_type == "minimax_m2" else _SOFTMAX
    if own.get("expert_gating_func", gate) != gate:
        left_out.append(f"{front}expert_gating_func ({own['expert_gating_func']})")
    left_out += [
        f"{front}{key} (got {got}, the model has {has})" for key, got, has in _differing(own, config)
    ]
    if left_out:
        raise ModelLoadError(
            f"model: {path}: not implemented from a GGUF file: {'; '.join(left_out)}; "
            "use the model's safetensors instead"
        )
    known = _WITHOUT_EFFECT | ROPE_KEYS | set(_NEUTRAL)
    return sorted(front + key for key in own if key not in known)


def _complete(config: Any, own: Mapping[str, Any], tensors: Collection[str]) -> None:  # noqa: ANN401
    """Give a configuration what llama.cpp knows of the file, where transformers takes a class's default."""
    for field, key in _SIZES.items():
        if hasattr(config, field) and isinstance(own.get(key), int):
            setattr(config, field, own[key])
    for field, tensor in _BIASES.items():
        if tensor in tensors and getattr(config, field, None) is False:
            setattr(config, field, True)
    width, heads = own.get("attention.key_length"), own["attention.head_count"]
    if isinstance(width, int) and hasattr(config, "head_dim") and not hasattr(config, "global_head_dim"):
        config.head_dim = width
    if hasattr(config, "query_pre_attn_scalar"):
        is_large = own["block_count"] == _LARGE_GEMMAS.get(config.model_type)
        config.query_pre_attn_scalar = own["embedding_length"] // heads if is_large else head_dim(config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(config, name, None)
        if isinstance(token, int) and token >= config.vocab_size:  # a default, of a larger vocabulary
            setattr(config, name, None)


def _changes(own: Mapping[str, Any], key: str, neutral: object, config: Any) -> bool:  # noqa: ANN401
    """Whether metadata has an effect that the configuration does not have."""
    value = own.get(key, neutral)
    if value == neutral or any(value == getattr(config, name, None) for name in _CONFIG_NAMES.get(key, ())):
        return False
    is_window = key == "attention.sliding_window" and isinstance(value, int)
    return not (is_window and value >= own.get("context_length", math.inf))


def _differing(own: Mapping[str, Any], config: Any) -> list[tuple[str, Any, Any]]:  # noqa: ANN401
    """What the file says of sizes and constants, and what the configuration says, where they differ."""
    rope = getattr(config, "rope_parameters", None) or {}
    heads, width = own["attention.head_count"], head_dim(config)
    pairs: list[tuple[str, Any, Any]] = [
        ("block_count", own["block_count"], config.num_hidden_layers),
        ("embedding_length", own["embedding_length"], config.hidden_size),
        ("attention.head_count", heads, config.num_attention_heads),
        ("attention.head_count_kv", own.get("attention.head_count_kv", heads), num_kv_heads(config)),
    ]
    for key in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"):
        if key in own:
            pairs.append((key, own[key], _epsilon(config)))
    pattern = own.get("attention.sliding_window_pattern")
    if pattern is not None:
        kinds = getattr(config, "layer_types", None) or []
        pairs.append(("attention.sliding_window_pattern", _windows(pattern, len(kinds)), _windowed(kinds)))
    if isinstance(rope.get("rope_theta"), (int, float)):
        base = rope["rope_theta"]
        pairs.append(("rope.freq_base_swa", own.get("rope.freq_base_swa", base), base))
        pairs.append(("rope.freq_base", own.get("rope.freq_base", _DEFAULT_ROPE_BASE), base))
        rotary = round(
            width * rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0))
        )
        pairs.append(("rope.dimension_count", own.get("rope.dimension_count", rotary), rotary))
    return [(key, got, has) for key, got, has in pairs if not _same(got, has)]


def _windows(pattern: Any, num_layers: int) -> tuple[bool, ...]:  # noqa: ANN401
    """Which layers have a window, as a file says it: one value per layer, or that each so many has none."""
    if isinstance(pattern, int) and pattern > 0:
        return tuple((layer + 1) % pattern != 0 for layer in range(num_layers))
    return tuple(map(bool, pattern)) if isinstance(pattern, list) else ()


def _windowed(kinds: Sequence[str]) -> tuple[bool, ...]:
    return tuple(kind == "sliding_attention" for kind in kinds)


def _epsilon(config: Any) -> float | None:  # noqa: ANN401
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
    return next((getattr(config, name) for name in names if hasattr(config, name)), None)


def _same(got: Any, has: Any) -> bool:  # noqa: ANN401
    """Whether two values are the same number; GGUF keeps float32. A list is one value per layer."""
    if isinstance(got, list):
        return all(_same(part, has) for part in got)
    if isinstance(got, float) and isinstance(has, (int, float)):
        return math.isclose(got, has, rel_tol=1e-6)
    return bool(got == has)
