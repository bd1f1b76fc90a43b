"""A loaded model and its properties."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from treeshare.models.extras import NO_EXTRAS, ModelExtras
from treeshare.models.quantization import weights_in_codes
from treeshare.native import PORTABLE
from treeshare.text import Detokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from treeshare.kv import KVGeometry
    from treeshare.models.fusion import FusedLayer
    from treeshare.models.step import AttentionCall


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to be bound.

    Attributes:
        model: The transformers model, in evaluation mode, attention set to treeshare's.
        fused: Its decoder layers where they are fused; else empty.
        unfused_reason: Why they are not; None where they are.
        tokenizer: Its tokenizer, or None where the folder has none.
        model_id: What the user asked for.
        geometry: Shape of its KV.
        calls: Its calls of attention, in their order.
        vocab_size: Token ids that the model's embedding knows.
        eos_token_ids: Tokens that end a completion.
        max_model_len: Maximum number of tokens of a sequence.
        load_s: Seconds that loading took.
        length_limit: What the user limited ``max_model_len`` to, or None.
        other_tokens: Tokens that stand for something else than text, such as an image, with what that is.
        quantization: ``int8``, or None.
        extras: What was given beside the model.
        is_in_memory: Whether it shares the weights of a model that the caller has.
    """

    model: Any
    fused: tuple[FusedLayer, ...]
    unfused_reason: str | None
    tokenizer: Any | None
    model_id: str
    geometry: KVGeometry
    calls: tuple[AttentionCall, ...]
    vocab_size: int
    eos_token_ids: frozenset[int]
    max_model_len: int
    load_s: float
    length_limit: int | None = None
    other_tokens: Mapping[int, str] = field(default_factory=dict)
    quantization: str | None = None
    extras: ModelExtras = NO_EXTRAS
    is_in_memory: bool = False

    @property
    def suggested(self) -> dict[str, Any]:
        """The fields of its ``generation_config.json``, with all tokens that end a completion."""
        fields: dict[str, Any] = self.model.generation_config.to_dict()
        return fields | {"eos_token_id": sorted(self.eos_token_ids)}

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> str:
        """Of weights and KV: ``float32`` or ``bfloat16``."""
        return str(self.geometry.dtype).removeprefix("torch.")

    @property
    def level(self) -> str | None:
        """Whose kernels compute all but int8 matmuls; None: those of the process, ``kernel_level()``.

        With int8 weights a completion is the same on every CPU, and so is everything else.
        """
        return PORTABLE if self.quantization else None

    @functools.cached_property
    def detokenizer(self) -> Detokenizer | None:
        """How tokens become text; None without a tokenizer."""
        return None if self.tokenizer is None else Detokenizer(self.tokenizer)

    def decoder(self, *, skip_special_tokens: bool) -> Callable[[Sequence[int]], str] | None:
        """A function from token ids to text; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        return functools.partial(self.tokenizer.decode, skip_special_tokens=skip_special_tokens)

    def fingerprint(self) -> str:
        """SHA-256 over the names, shapes, dtypes and bytes of all weights; of int8 weights, their codes."""
        digest = hashlib.sha256()
        codes = weights_in_codes(self.model)
        for name, tensor in sorted(self.model.state_dict().items()):
            parts = codes[name].tensors if name in codes else {"": tensor}
            for part, values in parts.items():
                digest.update(f"{name}{part and ':' + part} {tuple(values.shape)} {values.dtype}\n".encode())
                digest.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()
