"""Decoder layers whose small operations are fused, without a copy of the model's code.

A layer of the Llama shape (llama, mistral, qwen2) keeps its place, its parameters and their names; only its
``forward`` is replaced on the instance. Weights that share an input are joined, so one matmul gives q, k and
v, and another gate and up. A layer without its attention is two calls of a compiled kernel. Results are
rounded where transformers rounds them (``native/layers.h``).
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers.activations import SiLUActivation

from treeshare.attention import AttentionSpec
from treeshare.models.linear import LINEAR, SMALL_OPERATIONS, has_kernel, weights_of
from treeshare.native import ELEMENTS, kernel_level, kernels, structs, unused_reason
from treeshare.stopwatch import OFF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from treeshare.models.step import StepAttention

_LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"})

_PARTS = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}
"""Children that a layer must have, and no others."""


class FusedLayer:
    """The fused forward of one decoder layer.

    Args:
        layer: A layer without an ``unfused_reason``; its weights are moved, not copied. From now on they may
            only be changed in place.
        workspace: Memory for a layer's activations, shared by a model's layers.

    Attributes:
        joined: Its linear layers that replace several of the model's: q, k and v; gate and up.
        stopwatch: Is told how long its matmuls took, and the rest.
    """

    def __init__(self, layer: nn.Module, workspace: Workspace) -> None:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        norms: Any = layer.input_layernorm, layer.post_attention_layernorm
        self._index, self._spec, self._head_dim = (
            attention.layer_idx,
            AttentionSpec(scale=attention.scaling),
            attention.head_dim,
        )
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        self.joined = _joined(*projections), _joined(mlp.gate_proj, mlp.up_proj)
        self._linears = self.joined[0], attention.o_proj, self.joined[1], mlp.down_proj
        self._kernels: Any = kernels(attention.o_proj.weight.dtype)
        self._norms = norms
        self._num_heads = [part.out_features // self._head_dim for part in projections]
        self._workspace = workspace
        self._nanoseconds = np.zeros(2, np.int64)
        self.stopwatch = OFF
        self._layer = structs.Layer(
            *map(weights_of, self._linears),
            *(structs.Norm(norm.weight.data_ptr(), norm.variance_epsilon) for norm in norms),
            sum(self._num_heads[:2]),
            self._head_dim,
            None,
        )

    def __call__(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        treeshare_step: StepAttention,
        **_: object,
    ) -> Tensor:
        """The layer's output ``[1, T, width]``, written over its input."""
        x = hidden_states[0]
        cosine, sine = (table[0].contiguous() for table in position_embeddings)
        qkv, pointers = self._workspace.reserve(len(x), self._linears)
        activations = structs.Activations(
            len(x), cosine.data_ptr(), sine.data_ptr(), None, x.data_ptr(), *pointers
        )
        self._run(self._kernels.treeshare_before_attention, activations)
        query, key, value = torch.split(qkv.view(len(x), -1, self._head_dim), self._num_heads, dim=1)
        attended = treeshare_step.attend(self._index, query, key, value, self._spec).contiguous()
        activations.attended = attended.data_ptr()
        self._run(self._kernels.treeshare_after_attention, activations)
        return hidden_states

    def _run(self, kernel: Any, activations: structs.Activations) -> None:  # noqa: ANN401
        """Compute half a layer; its time is divided in proportion to what the threads spent on each part."""
        if self.stopwatch.enabled:
            self.stopwatch.lap(SMALL_OPERATIONS)
            self._nanoseconds[:] = 0
            self._layer.nanoseconds = self._nanoseconds.ctypes.data
        kernel(ctypes.byref(self._layer), ctypes.byref(activations))
        if self.stopwatch.enabled:
            self.stopwatch.split(
                dict(zip((LINEAR, SMALL_OPERATIONS), self._nanoseconds.tolist(), strict=True))
            )


class Workspace:
    """Memory for a layer's activations, kept from layer to layer and from step to step."""

    def __init__(self) -> None:
        self._num_rows = -1

    def reserve(self, num_rows: int, linears: Sequence[nn.Linear]) -> tuple[Tensor, list[int]]:
        """Reserve memory for ``num_rows`` rows; what the last call returned is overwritten or freed.

        Args:
            num_rows: Rows of this step.
            linears: A layer's ``qkv, out, gate_up, down``; those of all layers have the same shapes
                and dtype.

        Returns:
            ``[num_rows, .]`` queries, keys and values, and the addresses of ``normal, qkv, gate_up, gated,
            delta``.
        """
        if num_rows != self._num_rows:
            qkv, out, gate_up, down = linears
            widths = (
                qkv.in_features,
                qkv.out_features,
                gate_up.out_features,
                down.in_features,
                out.out_features,
            )
            self._tensors = [torch.empty(num_rows, width, dtype=out.weight.dtype) for width in widths]
            self._pointers = [tensor.data_ptr() for tensor in self._tensors]
            self._num_rows = num_rows
        return self._tensors[1], self._pointers


def unfused_reason(layer: nn.Module) -> str | None:
    """Why ``FusedLayer`` cannot replace the forward of ``layer``; None where it can."""
    name = type(layer).__name__
    if name not in _LAYERS:
        return f"{name} is none of {', '.join(sorted(_LAYERS))}"
    if kernel_level() == "none":
        reason = unused_reason()
        return "no compiled kernels are used" + (f": {reason}" if reason else "")
    for path, names in _PARTS.items():
        found = {child for child, _ in layer.get_submodule(path).named_children()}
        if found != names:
            return f"{name} has other parts: {', '.join(sorted(found ^ names))}"
    if not isinstance(layer.mlp.act_fn, (nn.SiLU, SiLUActivation)):  # type: ignore[union-attr]
        return f"{name} has another activation than SiLU"
    dtypes = {parameter.dtype for parameter in layer.parameters()}
    if len(dtypes) > 1 or not dtypes <= set(ELEMENTS):
        return "its weights are neither all bfloat16 nor all float32"
    if not all(has_kernel(linear) for linear in layer.modules() if isinstance(linear, nn.Linear)):
        return "a linear layer has an odd number of bfloat16 inputs or weights that are not dense"
    return None


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of ``model``: the members of its longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=()))


def fuse_layers(model: nn.Module) -> tuple[list[FusedLayer], str | None]:
    """Fuse the decoder layers of ``model``, all or none.

    Returns:
        The fused layers; or none, and the reason.
    """
    layers = decoder_layers(model)
    reasons = [reason for layer in layers if (reason := unfused_reason(layer)) is not None]
    if reasons or not layers:
        return [], reasons[0] if reasons else "it has no list of layers"
    for parameter in model.parameters():  # else the mapped file stays in memory beside the joined weights
        parameter.data = parameter.data.clone()
    workspace = Workspace()
    fused = [FusedLayer(layer, workspace) for layer in layers]
    for layer, forward in zip(layers, fused, strict=True):
        layer.forward = forward
    return fused, None


def unfuse_layers(model: nn.Module) -> None:
    """Give every decoder layer its own forward back."""
    for layer in model.modules():
        if isinstance(vars(layer).get("forward"), FusedLayer):
            del layer.forward


@torch.no_grad()
def _joined(*linears: Any) -> nn.Linear:  # noqa: ANN401
    """A linear layer that gives the outputs of all of ``linears``, whose weights become views of its own."""
    joined = nn.Linear(linears[0].in_features, sum(part.out_features for part in linears), device="meta")
    joined.weight = nn.Parameter(torch.cat([part.weight for part in linears]), requires_grad=False)
    joined.register_parameter("bias", None)
    if linears[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([part.bias for part in linears]), requires_grad=False)
    first = 0
    for part in linears:
        last = first + part.weight.shape[0]
        part.weight.data = joined.weight[first:last]
        if part.bias is not None:
            part.bias.data = joined.bias[first:last]
        first = last
    return joined
