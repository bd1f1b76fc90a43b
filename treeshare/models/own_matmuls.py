"""Modules that multiply by weights in code of their own, such as routers: row by row by the compiled kernel.

``linear.py`` replaces the forward of linear layers. A router holds its weights itself and calls
``torch.nn.functional.linear``, experts that ``experts.py`` does not know call ``bmm``. Their forward stays; while
it runs, its matmuls are the kernel's, whose bits for a row do not depend on how many rows there are.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from treeshare.models.linear import RowForward
from treeshare.native import kernels, structs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

_KNOWN = (nn.Embedding, Conv1D)
"""Classes whose weights are no matrices to multiply by, or are bound by ``linear.py``."""


class OwnMatmuls(RowForward):
    """The forward of a module, with the kernel's matmuls inside.

    Args:
        module: The module.
        level: Whose kernel; None: the process's, ``kernel_level()``.
    """

    def __init__(self, module: nn.Module, level: str | None = None) -> None:
        self._forward: Callable[..., Any] = module.forward
        self._level = level

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """What the module computes."""
        with _KernelMatmuls(self._level):
            return self._forward(*args, **kwargs)


class _KernelMatmuls(TorchFunctionMode):
    """Inside, matrices are multiplied by the kernel: rows by weights, one matrix or as many as there are weights."""

    def __init__(self, level: str | None) -> None:
        super().__init__()
        self._level = level

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        operands = _OPERANDS.get(func)
        if operands is not None:
            found = operands(*args, **(kwargs or {}))
            if self._can_multiply(*found):
                return self._multiply(*found)
        return func(*args, **(kwargs or {}))

    def _can_multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        dtypes = {tensor.dtype for tensor in (x, weight, bias) if tensor is not None}
        fits = weight.dim() == 2 or (weight.dim() == x.dim() == 3 and bias is None and len(x) == len(weight))
        is_even = x.dtype == torch.float32 or weight.shape[-1] % 2 == 0
        return fits and is_even and dtypes == {x.dtype} and kernels(x.dtype, self._level) is not None

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``[..., outputs]`` of ``x`` ``[..., inputs]`` and weights ``[outputs, inputs]``."""
        if weight.dim() == 3:
            return torch.stack([self._multiply(*pair, None) for pair in zip(x, weight, strict=True)])
        dense, rows = weight.contiguous(), x.reshape(-1, weight.shape[1]).contiguous()
        out = torch.empty(len(rows), len(dense), dtype=x.dtype)
        address = None if bias is None else bias.contiguous().data_ptr()
        linear = structs.Linear(dense.data_ptr(), address, dense.shape[1], len(dense))
        kernel: Any = kernels(x.dtype, self._level)
        kernel.treeshare_linear(ctypes.byref(linear), rows.data_ptr(), out.data_ptr(), len(rows))
        return out.view(*x.shape[:-1], len(dense))


def _of_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:  # noqa: A002
    return input, weight, bias


def _of_product(input: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:  # noqa: A002
    return input, other.mT if other.dim() > 1 else other, None


_OPERANDS: Mapping[Any, Callable[..., tuple[Tensor, Tensor, Tensor | None]]] = {
    nn.functional.linear: _of_linear,
    **dict.fromkeys(
        (torch.matmul, torch.mm, torch.bmm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.bmm), _of_product
    ),
    torch.Tensor.__matmul__: _of_product,
}
"""Functions that multiply matrices: what finds the rows, the weights ``[..., outputs, inputs]`` and the bias."""


def has_own_matmuls(module: nn.Module) -> bool:
    """Whether a module holds matrices and may multiply by them in a forward that is no linear layer's."""
    if type(module) is nn.Linear or isinstance(module, _KNOWN):
        return False
    return any(parameter is not None and parameter.dim() > 1 for parameter in module._parameters.values())


def bind_own_matmuls(model: nn.Module, level: str | None = None) -> list[nn.Module]:
    """Give every module with matmuls of its own the kernel's; returns these modules.

    Args:
        model: A model; modules whose forward was replaced stay as they are.
        level: Whose kernel; None: the process's, ``kernel_level()``.
    """
    bound = []
    for module in model.modules():
        dtypes = {parameter.dtype for parameter in module.parameters(recurse=False)}
        if "forward" in vars(module) or not has_own_matmuls(module):
            continue
        if all(kernels(dtype, level) is not None for dtype in dtypes):
            module.forward = OwnMatmuls(module, level)
            bound.append(module)
    return bound


def company_reason(model: nn.Module) -> str | None:
    """Why a row's bits may depend on what other rows there are; None where no such matmul is known."""
    for module in model.modules():
        if has_own_matmuls(module) and not isinstance(vars(module).get("forward"), RowForward):
            return f"{type(module).__name__} multiplies matrices by torch, which may sum as their sizes demand"
    return None
