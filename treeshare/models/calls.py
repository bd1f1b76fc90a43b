"""What a model's calls of attention compute, and whose KV they read: found by running it on a few tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from treeshare.errors import UnsupportedModelError
from treeshare.kv import KVGeometry, LayerKV
from treeshare.models.masks import OtherMask, mask_spec
from treeshare.models.step import AttentionCall, NoAttention, running
from treeshare.models.support import max_model_len

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from treeshare.attention import AttentionSpec

_NUM_TOKENS = 3
"""Tokens that the model is run on: more than one, because code may take another way for one."""


class CallRecorder:
    """A step that records the model's calls of attention.

    What transformers' users get is the mask's window or chunk, whether or not a keyword says it, too; so each
    mask that the model's code asks for is a stand-in, by which attention knows what it was made for.

    Args:
        longest: Tokens of the longest sequence.

    Attributes:
        calls: As they came.
        layers: The KV that they need.
    """

    def __init__(self, longest: int) -> None:
        self.calls: list[AttentionCall] = []
        self.layers: list[LayerKV] = []
        self._longest = longest
        self._stored: list[tuple[Tensor, Tensor]] = []  # kept, so that no other tensor gets their addresses
        self._masks: list[tuple[Tensor, AttentionSpec | str]] = []

    def new_mask(self, function: Callable[..., Tensor], num_rows: int, num_keys: int) -> Tensor:
        """A stand-in for the mask of ``function``."""
        mask = torch.zeros(1, 1, num_rows, num_keys, dtype=torch.bool)
        try:
            meaning: AttentionSpec | str = mask_spec(function, self._longest)
        except OtherMask as error:
            meaning = str(error)
        self._masks.append((mask, meaning))
        return mask

    def with_mask(self, mask: Tensor, spec: AttentionSpec) -> AttentionSpec:
        """``spec`` with the window or chunk of a mask that attention was given.

        Raises:
            OtherMask: If the mask was not made by ``new_mask``, is none that attention computes, or says
                something else than a keyword.
        """
        for known, meaning in self._masks:
            if known.data_ptr() != mask.data_ptr():
                continue
            if isinstance(meaning, str):
                raise OtherMask(meaning)
            asked = replace(spec, chunk=meaning.chunk, window=meaning.window)
            if spec.window is not None and self._needed(spec).window != self._needed(asked).window:
                raise OtherMask(f"a window of {spec.window} where its mask has {meaning.window}")
            return asked
        raise OtherMask("a mask of its own")

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec, sinks: Tensor | None = None
    ) -> Tensor:
        """See ``StepAttention``."""
        spec = self._needed(spec)
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

    def _needed(self, spec: AttentionSpec) -> AttentionSpec:
        """The same without a window or chunk that no sequence outgrows."""
        window = None if spec.window is None or spec.window >= self._longest else spec.window
        chunk = None if spec.chunk is None or spec.chunk >= self._longest else spec.chunk
        return replace(spec, window=window, chunk=chunk)


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in memory, be it a meta device's."""
    return _place(one) == _place(other)


def _place(tensor: Tensor) -> tuple[object, ...]:
    storage: Any = tensor.untyped_storage()
    return storage._cdata, tensor.storage_offset(), tensor.shape, tensor.stride()


@torch.inference_mode()
def discover_calls(model: Any) -> tuple[KVGeometry, tuple[AttentionCall, ...]]:  # noqa: ANN401
    """Find the shape of the model's KV, and what its calls of attention compute, by running it.

    A call that is given the keys and values of an earlier one reads that one's. A window or chunk as long as
    the longest sequence counts as none.

    Raises:
        UnsupportedModelError: If it calls no attention.
    """
    recorder = CallRecorder(max_model_len(model.config))
    with running(recorder):
        model(input_ids=torch.zeros(1, _NUM_TOKENS, dtype=torch.int64, device=model.device), use_cache=False)
    if not recorder.calls:
        raise UnsupportedModelError(f"{model.config.model_type}: not implemented: layers without attention")
    layers = [
        replace(shape, reach=_reach([call.spec for call in recorder.calls if call.layer == layer]))
        for layer, shape in enumerate(recorder.layers)
    ]
    return KVGeometry(layers=tuple(layers), dtype=model.dtype), tuple(recorder.calls)


def _reach(specs: list[AttentionSpec]) -> int | None:
    """How far the rows of any of some calls see; None: to the beginning."""
    reaches = [spec.reach for spec in specs]
    return None if None in reaches else max(reach for reach in reaches if reach is not None)
