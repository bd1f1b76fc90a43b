"""A model whose linear layers, embedding and head have int8 weights.

The modules keep their places and their parameters' names and shapes; a weight in codes is a parameter without
memory, one zero that is read in every place, and the module's forward, on the instance, reads the codes.
"""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from treeshare.errors import UnsupportedModelError
from treeshare.models.linear import RowForward
from treeshare.models.quantization.weights import Int8Weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class QuantizedLinear(RowForward):
    """The forward of a linear layer by int8 weights.

    Args:
        weights: Of the layer.
    """

    def __init__(self, weights: Int8Weights) -> None:
        self.weights = weights

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., outputs]`` for ``x`` ``[..., inputs]``, in its dtype."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        return self.weights.multiply(rows).view(*x.shape[:-1], -1)


class QuantizedEmbedding:
    """The forward of an embedding by int8 weights.

    Args:
        weights: Its table.
        module: The embedding; what its class does beside looking up, such as scaling, is done here too.
    """

    def __init__(self, weights: Int8Weights, module: nn.Embedding) -> None:
        self.weights = weights
        self._dtype = module.weight.dtype
        # The class's own forward, of a table of the rows that were looked up.
        self._rest = copy.copy(module)
        self._rest.padding_idx = None  # which only training asks for

    def __call__(self, ids: Tensor) -> Tensor:
        """``[..., width]`` for token ids."""
        rows = self.weights.rows(ids.reshape(-1), self._dtype)
        self._rest._parameters = {"weight": nn.Parameter(rows, requires_grad=False)}
        places = torch.arange(len(rows)).view(ids.shape)
        out: Tensor = type(self._rest).forward(self._rest, places)
        return out


def placeholder(shape: torch.Size, dtype: torch.dtype) -> nn.Parameter:
    """A parameter in the place of a weight in codes: its shape and dtype, one number of memory."""
    return nn.Parameter(torch.zeros(1, dtype=dtype).expand(shape), requires_grad=False)


def is_placeholder(parameter: Tensor) -> bool:
    """Whether a parameter is one of ``placeholder``'s."""
    return parameter.numel() > 1 and not any(parameter.stride())


def quantized_linears(model: nn.Module) -> dict[str, Int8Weights]:
    """The linear layers of a model that have int8 weights, by name."""
    return {
        name: vars(module)["forward"].weights
        for name, module in model.named_modules()
        if isinstance(vars(module).get("forward"), QuantizedLinear)
    }


def weights_in_codes(model: nn.Module) -> dict[str, Int8Weights]:
    """The int8 weights of a model, by their parameters' names; a tied head has the embedding's."""
    return {
        f"{name}.weight" if name else "weight": vars(module)["forward"].weights
        for name, module in model.named_modules()
        if isinstance(vars(module).get("forward"), (QuantizedLinear, QuantizedEmbedding))
    }


def codes_by_parameter(model: nn.Module) -> dict[int, Int8Weights]:
    """The same by the identities of the parameters."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {id(parameters[name]): weights for name, weights in weights_in_codes(model).items()}


@contextlib.contextmanager
def own_forwards(model: nn.Module) -> Iterator[None]:
    """Inside, linear layers of ``model`` have their classes' forward, which is given placeholders."""
    taken = {
        module: vars(module)["forward"]
        for module in model.modules()
        if isinstance(vars(module).get("forward"), QuantizedLinear)
    }
    for module in taken:
        del module.forward
    try:
        yield
    finally:
        for module, forward in taken.items():
            module.forward = forward


def quantizable(model: Any) -> dict[str, nn.Module]:  # noqa: ANN401
    """The modules of a model that get int8 weights, by name: linear layers, and the embedding of tokens."""
    embedding = model.get_input_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) or module is embedding
    }


@torch.no_grad()
def quantize_model(model: Any) -> None:  # noqa: ANN401
    """Quantise a model's weights in place; its float weights are freed one by one.

    Raises:
        UnsupportedModelError: If its embedding or head is of a class whose weights cannot be in codes, or a
            weight is not finite.
    """
    made: dict[int, Int8Weights] = {}
    codes = {}
    for name, module in quantizable(model).items():
        weight: Tensor = module.weight  # type: ignore[assignment]
        if not bool(weight.isfinite().all()):
            raise UnsupportedModelError(
                f"{name}.weight: its numbers are not finite, so they cannot be quantised"
            )
        if id(weight) not in made:
            made[id(weight)] = quantize_linear(module)
        codes[name] = made[id(weight)]
    bind_codes(model, codes)


def quantize_linear(module: Any, transform: int | None = None) -> Int8Weights:  # noqa: ANN401
    """Int8 weights of a linear layer or an embedding, which stays as it is.

    Args:
        module: The layer.
        transform: Inputs that are mixed together; by default as many as its number of inputs lets.
    """
    weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
    return Int8Weights.of(weight, getattr(module, "bias", None), transform)


def bind_codes(model: Any, codes: Mapping[str, Int8Weights]) -> None:  # noqa: ANN401
    """Give modules of a model, by name, their weights in codes; the float weights are freed.

    Raises:
        UnsupportedModelError: If a module is no linear layer and no embedding, or one weight is of two kinds.
    """
    modules = dict(model.named_modules())
    stand_ins: dict[int, nn.Parameter] = {}
    for name, weights in codes.items():
        module = modules[name]
        parameter: Any = module.weight
        if id(parameter) not in stand_ins:
            stand_in = placeholder(parameter.shape, parameter.dtype)
            stand_ins[id(parameter)] = stand_ins[id(stand_in)] = stand_in
        module.weight = stand_ins[id(parameter)]
        if isinstance(module, nn.Embedding):
            if module.max_norm is not None:
                raise UnsupportedModelError(f"{name}: an embedding with max_norm has no int8 weights")
            module.forward = QuantizedEmbedding(weights, module)  # type: ignore[assignment]
        elif type(module) in (nn.Linear, Conv1D):
            module.forward = QuantizedLinear(weights)
        else:
            raise UnsupportedModelError(
                f"{name}: a {type(module).__name__} instead of a linear layer has no int8 weights"
            )
