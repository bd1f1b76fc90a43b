"""Linear layers on the compiled kernel: a row's bits do not depend on the number of rows.

Few rows cost little more than reading the weights once, and no row is padded. The weights stay where they
are; only ``forward`` is replaced, on the instance.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from treeshare.native import kernels, structs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


LINEAR = "linear"
"""The stopwatch's part for a model's matmuls, without ``lm_head``."""

SMALL_OPERATIONS = "norms and other small operations"
"""The stopwatch's part for what lies between a model's matmuls and attention."""


def weights_of(linear: nn.Module) -> structs.Linear:
    """A linear layer as the kernels take it; valid while its weights stay where they are."""
    weight, bias = _outputs_first(linear), linear.bias
    address = None if bias is None else bias.data_ptr()  # type: ignore[operator]
    return structs.Linear(weight.data_ptr(), address, *reversed(weight.shape))


def _outputs_first(linear: nn.Module) -> Tensor:
    """The weight as ``[outputs, inputs]``: GPT-2's class has it the other way round."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    return weight.t() if isinstance(linear, Conv1D) else weight


class RowForward:
    """A module's forward that gives a row the same bits whatever other rows there are."""


class KernelLinear(RowForward):
    """The forward of one linear layer.

    Args:
        linear: A layer for which ``has_kernel`` holds.
        level: Whose kernel; None: the process's, ``kernel_level()``.
    """

    def __init__(self, linear: Any, level: str | None = None) -> None:  # noqa: ANN401
        self._linear = linear
        self._kernel: Any = kernels(linear.weight.dtype, level).treeshare_linear  # type: ignore[union-attr]
        self._dtype = linear.weight.dtype

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., out_features]`` for ``x`` ``[..., in_features]``, summed in float32.

        A layer that has changed since, or another dtype, is torch's own ``linear``.
        """
        linear = self._linear
        if not x.dtype == linear.weight.dtype == self._dtype or not has_kernel(linear):
            return nn.functional.linear(x, _outputs_first(linear), linear.bias)
        weights = weights_of(linear)
        rows = x.reshape(-1, weights.num_inputs).contiguous()
        out = torch.empty(len(rows), weights.num_outputs, dtype=x.dtype)
        self._kernel(ctypes.byref(weights), rows.data_ptr(), out.data_ptr(), len(rows))
        return out.view(*x.shape[:-1], weights.num_outputs)


def has_kernel(linear: Any) -> bool:  # noqa: ANN401
    """Whether the kernel is available and computes this layer.

    That is: bfloat16 with an even number of inputs, or float32; dense.
    """
    weight, bias = _outputs_first(linear), linear.bias
    dense = [weight] if bias is None else [weight, bias]
    return (
        kernels(weight.dtype) is not None
        and (weight.dtype == torch.float32 or weight.shape[1] % 2 == 0)
        and all(tensor.dtype == weight.dtype and tensor.is_contiguous() for tensor in dense)
    )


def uses_kernel(module: nn.Module) -> bool:
    """Whether the module's forward is a kernel's: a row has the same bits with any number of rows."""
    return isinstance(vars(module).get("forward"), RowForward)


def bind_linears(modules: Iterable[nn.Module], level: str | None = None) -> list[nn.Module]:
    """Replace the forward of every linear layer that the kernel computes; returns these layers.

    The weights of ``Conv1D`` are turned round in memory; they keep their shape.

    Args:
        modules: Those that are no linear layers stay as they are.
        level: Whose kernel; None: the process's, ``kernel_level()``.
    """
    found: list[Any] = [
        module for module in modules if type(module) in (nn.Linear, Conv1D) and not uses_kernel(module)
    ]
    for module in found:
        if type(module) is Conv1D and kernels(module.weight.dtype) is not None:
            module.weight.data = module.weight.data.t().contiguous().t()
    bound = [module for module in found if has_kernel(module)]
    for linear in bound:
        linear.forward = KernelLinear(linear, level)
    return bound


def unbind_linears(bound: Iterable[nn.Module]) -> None:
    """Give linear layers their own forward back."""
    for module in bound:
        del module.forward
