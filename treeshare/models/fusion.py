"""Decoder layers whose small operations are fused, where the model's code allows it without a fork of it.

A layer of the Llama shape (llama, mistral, qwen2) keeps its place, its parameters and their names; only its
``forward`` is replaced on the instance. Weights that share an input lie side by side, so one matmul serves q,
k and v, another gate and up; norms, residuals, rotary positions and the gated activation run in compiled
kernels, one pass each. Rounding is transformers' own (``native/layers.cpp``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.activations import SiLUActivation

from treeshare.native import kernels

if TYPE_CHECKING:
    from torch import Tensor

    from treeshare.models.adapter import StepAttention

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
        layer: A layer for which ``can_fuse`` holds; its weights are moved, not copied.

    Attributes:
        joined: Its two linear layers that serve several of the model's.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._kernels: Any = kernels()
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self._index, self._scale, self._head_dim = attention.layer_idx, attention.scaling, attention.head_dim
        self._norms: Any = (layer.input_layernorm, layer.post_attention_layernorm)
        self.joined = (
            _joined(attention.q_proj, attention.k_proj, attention.v_proj),
            _joined(mlp.gate_proj, mlp.up_proj),
        )
        self._qkv, self._gate_up = self.joined
        self._out, self._down = attention.o_proj, mlp.down_proj
        self._num_heads = [
            projection.out_features // self._head_dim
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        ]

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
        qkv = self._qkv(self._norm(x))
        attended = self._attend(qkv, position_embeddings, treeshare_step)
        normal = self._norm(x, delta=self._out(attended))
        gate_up = self._gate_up(normal)
        gated = torch.empty(len(x), gate_up.shape[1] // 2, dtype=x.dtype)
        self._kernels.treeshare_silu_mul(gate_up.data_ptr(), gated.data_ptr(), *gated.shape)
        return x.add_(self._down(gated)).unsqueeze(0)

    def _attend(self, qkv: Tensor, positions: tuple[Tensor, Tensor], step: StepAttention) -> Tensor:
        num_rows, width = qkv.shape
        cosine, sine = (turn[0].contiguous() for turn in positions)
        num_q, num_k, _ = self._num_heads
        self._kernels.treeshare_rotate(
            qkv.data_ptr(),
            cosine.data_ptr(),
            sine.data_ptr(),
            num_rows,
            width,
            num_q + num_k,
            self._head_dim,
        )
        heads = qkv.view(num_rows, -1, self._head_dim)
        query, key, value = torch.split(heads, self._num_heads, dim=1)
        return step.attend(self._index, query, key, value, self._scale).reshape(num_rows, -1)

    def _norm(self, x: Tensor, delta: Tensor | None = None) -> Tensor:
        """RMS norm of ``x``: the first without, the second with ``delta`` added to ``x`` before."""
        norm = self._norms[0 if delta is None else 1]
        out = torch.empty_like(x)
        weight, shape = norm.weight.data_ptr(), (*x.shape, norm.variance_epsilon)
        if delta is None:
            self._kernels.treeshare_rms_norm(x.data_ptr(), weight, out.data_ptr(), *shape)
        else:
            self._kernels.treeshare_add_rms_norm(
                x.data_ptr(), delta.data_ptr(), weight, out.data_ptr(), *shape
            )
        return out


def can_fuse(layer: nn.Module) -> bool:
    """Whether ``FusedLayer`` computes what ``layer`` does: its class and its parts are known, bfloat16."""
    if type(layer).__name__ not in _LAYERS or kernels() is None:
        return False
    is_known = all(
        {name for name, _ in layer.get_submodule(path).named_children()} == names
        for path, names in _PARTS.items()
    )
    return (
        is_known
        and isinstance(layer.mlp.act_fn, (nn.SiLU, SiLUActivation))  # type: ignore[union-attr]
        and {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
    )


def fuse_layers(model: nn.Module) -> list[FusedLayer]:
    """Fuse the decoder layers of ``model`` that can be, and give them back; all or none."""
    layers = [layer for layer in model.modules() if type(layer).__name__ in _LAYERS]
    if not all(map(can_fuse, layers)):
        return []
    for parameter in model.parameters():  # else the weights' file stays in memory beside the joined copies
        parameter.data = parameter.data.clone()
    fused = [FusedLayer(layer) for layer in layers]
    for layer, forward in zip(layers, fused, strict=True):
        layer.forward = forward
    return fused


def unfuse_layers(model: nn.Module) -> None:
    """Give every decoder layer its own forward back."""
    for layer in model.modules():
        if isinstance(vars(layer).get("forward"), FusedLayer):
            del layer.forward


@torch.no_grad()
def _joined(*linears: Any) -> nn.Linear:  # noqa: ANN401
    """One linear layer that gives the outputs of all; theirs become views of its weights."""
    joined = nn.Linear(linears[0].in_features, sum(one.out_features for one in linears), device="meta")
    joined.weight = nn.Parameter(torch.cat([one.weight for one in linears]), requires_grad=False)
    joined.register_parameter("bias", None)
    if linears[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([one.bias for one in linears]), requires_grad=False)
    first = 0
    for one in linears:
        last = first + one.weight.shape[0]
        one.weight.data = joined.weight[first:last]
        if one.bias is not None:
            one.bias.data = joined.bias[first:last]
        first = last
    return joined
