"""Rotary embeddings as a GGUF file gives them, in transformers' words.

transformers reads the base alone. Factors of single angles are tensors (every Llama 3.1 to 3.3 file has
them), and a scaling is metadata; llama.cpp's meaning of both is what counts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from treeshare.models.support import head_dim, max_model_len

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FREQUENCIES = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
ROPE_TENSORS = (FREQUENCIES, SHORT, LONG)

ROPE_KEYS = frozenset(
    {
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scale_linear",
    }
)
"""Metadata that ``set_rope`` understands, where it does not refuse them."""

_PARTIAL = frozenset({"nemotron", "phi3", "stablelm"})
"""Kinds of models whose code turns a part of a head's numbers, if ``partial_rotary_factor`` says so."""


class OtherRope(Exception):
    """What of a file's rope has no counterpart; the text names it."""


def set_rope(config: Any, own: Mapping[str, Any], tensors: Mapping[str, Sequence[float]]) -> None:  # noqa: ANN401
    """Give a configuration the rope that a file has.

    Args:
        config: As transformers made it of the file.
        own: The file's metadata of the model, without the architecture in front.
        tensors: The numbers of those of ``ROPE_TENSORS`` that it has.

    Raises:
        OtherRope: If there are none that mean the same.
    """
    rope = getattr(config, "rope_parameters", None)
    scaled = _scaled(config, own, tensors)
    if not isinstance(rope, dict):
        if scaled:
            raise OtherRope("a scaled rope of this architecture")
        return
    if "full_attention" in rope:  # a rope for each layer type, of which llama.cpp scales this one
        base = {"rope_theta": own.get("rope.freq_base", rope["full_attention"]["rope_theta"])}
        config.rope_parameters = rope | {"full_attention": rope["full_attention"] | base | scaled}
        if "rope.freq_base_swa" in own:
            local = rope["sliding_attention"] | {"rope_theta": own["rope.freq_base_swa"]}
            config.rope_parameters["sliding_attention"] = local
        return
    width = own.get("rope.dimension_count")
    if isinstance(width, int) and 0 < width < head_dim(config) and config.model_type in _PARTIAL:
        scaled = {"partial_rotary_factor": width / head_dim(config)} | scaled
    if scaled.get("rope_type") == "longrope":
        config.original_max_position_embeddings = scaled["original_max_position_embeddings"]
    config.rope_parameters = rope | scaled


def _scaled(config: Any, own: Mapping[str, Any], tensors: Mapping[str, Sequence[float]]) -> dict[str, Any]:  # noqa: ANN401
    """The fields of ``rope_parameters`` that say how angles are scaled; none if they are not."""
    factor = own.get("rope.scaling.factor") or own.get("rope.scale_linear") or 1.0
    kind = own.get("rope.scaling.type", "linear")
    longest = max_model_len(config)
    original = own.get("rope.scaling.original_context_length") or longest
    attention = own.get("rope.scaling.attn_factor") or 1.0
    if kind == "none":
        factor = 1.0
    if SHORT in tensors or LONG in tensors:
        if not {SHORT, LONG} <= set(tensors) or FREQUENCIES in tensors or kind == "yarn":
            raise OtherRope(f"{', '.join(tensors)} with rope.scaling.type {kind}")
        return _long(tensors[SHORT], tensors[LONG], original, attention)
    if kind == "yarn" and not tensors:
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "attention_factor": attention * (1.0 + 0.1 * math.log(factor) if factor > 1 else 1.0),
            "beta_fast": own.get("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": own.get("rope.scaling.yarn_beta_slow", 1.0),
        }
    if kind not in ("none", "linear") or attention != 1.0:
        raise OtherRope(
            f"rope.scaling.type {kind}, attn_factor {attention}, {', '.join(tensors) or 'no tensors'}"
        )
    if FREQUENCIES in tensors:
        factors = [factor * each for each in tensors[FREQUENCIES]]
        return _long(factors, factors, longest, 1.0)
    return {} if factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _long(
    short: Sequence[float], long: Sequence[float], original: int, attention_factor: float
) -> dict[str, Any]:
    """A factor for each angle; where ``long`` is ``short``, for sequences of any length."""
    return {
        "rope_type": "longrope",
        "short_factor": list(short),
        "long_factor": list(long),
        "factor": 1.0,
        "attention_factor": attention_factor,
        "original_max_position_embeddings": original,
    }
