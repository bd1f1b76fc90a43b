"""Refuses a model at load time, by name, if it needs what is not implemented, instead of being wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from treeshare.attention import CpuAttention, PrefillChunk, build_layout
from treeshare.errors import UnsupportedModelError
from treeshare.kv import KVGeometry, KVStore
from treeshare.models.step import TreeStep

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from treeshare.attention import AttentionBackend, AttentionSpec, BatchLayout

_ROPE_BY_LENGTH = frozenset({"dynamic", "longrope"})
"""Kinds of rotary embedding that depend on the longest sequence of a batch."""

_RELATIVE_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest logit difference in the self-check, relative to the largest logit."""


def max_model_len(config: Any) -> int:  # noqa: ANN401
    """Maximum tokens of a sequence, prompt and completion together, by the model's number of positions."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1 << 20


def unsupported_features(model: Any) -> list[str]:  # noqa: ANN401
    """Name each feature of ``model`` that treeshare does not implement."""
    config = model.config
    window, rope_type = _sliding_window(config), _rope_type(config)
    soft_cap = getattr(config, "attn_logit_softcapping", None)
    known_kinds = {"full_attention", "sliding_attention", "attention"}
    other_kinds = sorted(set(getattr(config, "layer_types", None) or ()) - known_kinds)
    checks = {
        "encoder-decoder architecture": getattr(config, "is_encoder_decoder", False),
        "bidirectional attention": getattr(config, "is_causal", True) is False,
        f"sliding-window attention (window {window})": window is not None and window < max_model_len(config),
        f"layers of type {', '.join(other_kinds)}": other_kinds,
        f"attention soft-capping ({soft_cap})": soft_cap is not None,
        "ALiBi position biases": _has_alibi(config),
        "multi-head latent attention": getattr(config, "kv_lora_rank", None),
        "cross-attention": getattr(config, "add_cross_attention", False),
        "attention sinks": any(name.endswith(".sinks") for name, _ in model.named_parameters()),
        f"rotary embedding that depends on the batch (rope_type {rope_type})": rope_type in _ROPE_BY_LENGTH,
        "model code without transformers' attention interface": not getattr(
            model, "_supports_attention_backend", False
        ),
    }
    return [feature for feature, needed in checks.items() if needed]


def _has_alibi(config: Any) -> bool:  # noqa: ANN401
    return (
        bool(getattr(config, "alibi", False))
        or getattr(config, "position_embedding_type", None) == "alibi"
        or getattr(config, "model_type", "") in ("bloom", "mpt")
    )


def _rope_type(config: Any) -> str | None:  # noqa: ANN401
    rope = getattr(config, "rope_parameters", None)
    return rope.get("rope_type") if isinstance(rope, dict) else None


def _sliding_window(config: Any) -> int | None:  # noqa: ANN401
    """The window that the model uses, or None."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not isinstance(window, int) or getattr(config, "use_sliding_window", True) is False:
        return None
    return window if kinds is None or "sliding_attention" in kinds else None


class _Recorder:
    """A step that records each layer's KV shape and ``AttentionSpec``; its attention returns the query."""

    def __init__(self) -> None:
        self.shapes: dict[int, tuple[int, int]] = {}
        self.specs: dict[int, AttentionSpec] = {}
        self.num_calls = 0

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        self.num_calls += 1
        self.specs[layer] = spec
        self.shapes[layer] = (key.shape[1], key.shape[2])
        return query


@torch.inference_mode()
def discover_layers(model: Any) -> tuple[KVGeometry, tuple[AttentionSpec, ...]]:  # noqa: ANN401
    """Find the shape of the model's KV, and what each layer's attention computes, by running it on one token.

    A window as long as the longest sequence counts as none.

    Raises:
        UnsupportedModelError: If layers differ or do not number from 0, or a call of attention is not a
            layer's.
    """
    recorder = _Recorder()
    model(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=False, treeshare_step=recorder)
    shapes = set(recorder.shapes.values())
    if len(shapes) != 1 or sorted(recorder.shapes) != list(range(recorder.num_calls)):
        raise UnsupportedModelError(
            f"{model.config.model_type}: layers whose KV differs in shape or is shared between layers "
            f"(seen: {sorted(shapes)} in {recorder.num_calls} calls) are not implemented"
        )
    heads, head_dim = shapes.pop()
    geometry = KVGeometry(
        num_layers=recorder.num_calls, num_kv_heads=heads, head_dim=head_dim, dtype=model.dtype
    )
    longest = max_model_len(model.config)
    specs = (recorder.specs[layer] for layer in range(recorder.num_calls))
    return geometry, tuple(
        replace(spec, window=None) if spec.window is not None and spec.window >= longest else spec
        for spec in specs
    )


def require_support(
    backend: AttentionBackend | type[AttentionBackend],
    specs: Iterable[AttentionSpec],
    model_type: str,
) -> None:
    """Refuse a model whose layers need what a backend does not compute.

    Raises:
        UnsupportedModelError: Naming the backend and each feature that it lacks.
    """
    missing = sorted({feature for spec in specs for feature in spec.features - backend.features})
    if missing:
        raise UnsupportedModelError(
            f"{model_type}: not implemented by attention {backend.name}: {'; '.join(missing)}"
        )


class SelfCheck:
    """Compares a small branching tree with the model's own attention, one prompt at a time.

    Catches what no configuration field says: layers that mix the tokens of a row, a mask of the model's own,
    positions that are ignored, a fused layer that computes something else.

    Args:
        model: Unfused, attention set to treeshare's.
        geometry: Its KV.
    """

    @torch.inference_mode()
    def __init__(self, model: Any, geometry: KVGeometry) -> None:  # noqa: ANN401
        from treeshare.models.adapter import ATTENTION_NAME

        self._model, self._geometry = model, geometry
        vocab_size = model.get_output_embeddings().weight.shape[0]
        draws = torch.Generator().manual_seed(0)
        self._parts = [torch.randint(vocab_size, (n,), generator=draws).tolist() for n in (9, 4, 5)]
        shared, *tails = self._parts
        model.set_attn_implementation("eager")
        own = [model(input_ids=torch.tensor([shared + tail]), use_cache=False).logits[0] for tail in tails]
        model.set_attn_implementation(ATTENTION_NAME)
        self._expected = torch.cat([own[0], own[1][len(shared) :]]).float()

    @torch.inference_mode()
    def error(self) -> float:
        """Largest difference of a logit, relative to the largest logit."""
        layout = _branching_layout(self._geometry, *map(len, self._parts))
        got = self._model(
            input_ids=torch.tensor([[token for part in self._parts for token in part]]),
            position_ids=layout.positions.unsqueeze(0),
            use_cache=False,
            treeshare_step=TreeStep(CpuAttention(), layout),
        ).logits[0]
        return float((got.float() - self._expected).abs().max() / self._expected.abs().max())

    def check(self) -> float:
        """Return ``error()``, if it is small enough to be rounding.

        Raises:
            UnsupportedModelError: If it is larger.
        """
        error = self.error()
        if not error <= _RELATIVE_ERROR[self._geometry.dtype]:
            raise UnsupportedModelError(
                f"{self._model.config.model_type}: its own attention is not plain causal attention "
                f"(logits differ by {error:.2g} of the largest); this model is not supported"
            )
        return error


def _branching_layout(geometry: KVGeometry, shared: int, left: int, right: int) -> BatchLayout:
    """A step that computes a root of ``shared`` tokens and two children, of ``left`` and ``right`` tokens."""
    store = KVStore(geometry, budget_bytes=1 << 40, page_size=16, max_pages=0)
    root = store.segments.new(start=0, num_tokens=shared, order=0, parent=None)
    segments = [root] + [
        store.segments.new(start=shared, num_tokens=length, order=order, parent=root)
        for order, length in ((1, left), (2, right))
    ]
    return build_layout(store, [PrefillChunk(segment, 0, segment.num_tokens) for segment in segments], [])
