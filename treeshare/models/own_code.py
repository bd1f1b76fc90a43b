"""Modules that compute in their own code, such as routers: row by row on the compiled kernels.

``linear.py`` replaces the forward of linear layers. A router holds its weights itself and calls
``torch.nn.functional.linear``; experts that ``experts.py`` does not know call ``bmm``. And torch computes a
sigmoid of many numbers by vectors, but of the last few, or of a thread's last few, by other code with other
bits. So where a number stands, and with it a row's bits, would depend on how many rows there are.

A module's forward stays; while it runs, its matmuls and such functions are the kernels'.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from treeshare.models.linear import RowForward
from treeshare.native import kernels, number_of, structs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

_KNOWN = (nn.Embedding, Conv1D)
"""Classes whose weights are no matrices to multiply by, or are bound by ``linear.py``."""


class OwnCode(RowForward):
    """The forward of a module, with the kernels' matmuls and functions inside.

    Args:
        module: The module.
        level: Whose kernels; None: the process's, ``kernel_level()``.

    Attributes:
        unknown: What it was seen to multiply matrices by that is not the kernels'; None: nothing.
    """

    def __init__(self, module: nn.Module, level: str | None = None) -> None:
        self._forward: Callable[..., Any] = module.forward
        if hasattr(type(module), "_apply_gate"):
            # Experts: the class's code, not a grouped matmul of the library.
            self._forward = functools.partial(inspect.unwrap(type(module).forward), module)
        self._level = level
        self.unknown: str | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """What the module computes."""
        with _ByKernels(self._level) as mode:
            result = self._forward(*args, **kwargs)
        self.unknown = self.unknown or mode.unknown
        return result


class _ByKernels(TorchFunctionMode):
    """Inside, matrices are multiplied, and functions of each number computed, by the kernels."""

    def __init__(self, level: str | None) -> None:
        super().__init__()
        self._level = level
        self.unknown: str | None = None

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        operands = _OPERANDS.get(func)
        if operands is not None:
            found = operands(*args, **(kwargs or {}))
            if self._can_multiply(*found):
                return self._multiply(*found)
        if operands is not None or func in _OTHERS:
            self.unknown = getattr(func, "__name__", str(func))
        find_kind = _FUNCTIONS.get(func)
        if find_kind is not None and args and kernels(args[0].dtype, self._level) is not None:
            kind = find_kind(*args[1:], **(kwargs or {}))
            if kind is not None:
                return self._compute(kind, args[0])
        return func(*args, **(kwargs or {}))

    def _compute(self, kind: str, x: Tensor) -> Tensor:
        """A function of each number."""
        dense = x.contiguous()
        out = torch.empty_like(dense)
        shape = (-1, x.shape[-1]) if x.dim() > 1 and x.shape[-1] >= _WIDE else (1, x.numel())
        rows, results = dense.view(shape), out.view(shape)
        none = structs.Place(number_of("NO_BUFFER"), 0, 0)
        source, target = (structs.Place(number, 0, 0) for number in (0, 1))
        operation = structs.Operation(
            number_of(kind), number_of("ROUND"), 1, rows.shape[1], source, none, none, target
        )
        buffers = (structs.Buffer * 2)(
            *(structs.Buffer(tensor.data_ptr(), tensor.shape[1], 0) for tensor in (rows, results))
        )
        program = structs.Program(
            ctypes.addressof(operation), 1, ctypes.addressof(buffers), len(rows), 1, None, None
        )
        kernels(x.dtype, self._level).treeshare_run(ctypes.byref(program))  # type: ignore[union-attr]
        return out

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


def _of_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def _of_product(input: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, other.mT if other.dim() > 1 else other, None


_OPERANDS: Mapping[Any, Callable[..., tuple[Tensor, Tensor, Tensor | None]]] = {
    nn.functional.linear: _of_linear,
    **dict.fromkeys(
        (torch.matmul, torch.mm, torch.bmm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.bmm),
        _of_product,
    ),
    torch.Tensor.__matmul__: _of_product,
}
"""Functions that multiply matrices: what finds rows, weights ``[..., outputs, inputs]`` and the bias."""


_OTHERS = frozenset(
    {
        *(torch.einsum, torch.addmm, torch.baddbmm, torch.addbmm, torch.addmv, torch.mv, torch.tensordot),
        *(torch.Tensor.addmm, torch.Tensor.baddbmm, torch.Tensor.mv, nn.functional.bilinear),
        getattr(nn.functional, "grouped_mm", None),
    }
)
"""Functions that multiply matrices, too, and are torch's."""


def _of_gelu(approximate: str = "none") -> str:
    return {"none": "GELU", "tanh": "GELU_TANH"}[approximate]


def _of_silu(inplace: bool = False) -> str | None:
    return None if inplace else "SILU"


_FUNCTIONS: Mapping[Any, Callable[..., str | None]] = {
    nn.functional.silu: _of_silu,
    nn.functional.gelu: _of_gelu,
    **dict.fromkeys((torch.sigmoid, torch.Tensor.sigmoid), lambda: "SIGMOID"),
    **dict.fromkeys((torch.tanh, torch.Tensor.tanh), lambda: "TANH"),
}
"""Functions of each number that torch computes by two codes: what finds the kernel's operation, or None."""

_WIDE = 16
"""Numbers from which on rows are computed one by one, by several threads."""


def has_own_matmuls(module: nn.Module) -> bool:
    """Whether a module holds matrices and may multiply by them in a forward that is no linear layer's."""
    if type(module) is nn.Linear or isinstance(module, _KNOWN):
        return False
    return any(parameter is not None and parameter.dim() > 1 for parameter in module._parameters.values())


def bind_own_matmuls(model: nn.Module, level: str | None = None) -> list[nn.Module]:
    """Give every module with matmuls of its own the kernels'; returns these modules.

    Args:
        model: A model; modules whose forward was replaced stay as they are.
        level: Whose kernels; None: the process's, ``kernel_level()``.
    """
    return bind_own_code(filter(has_own_matmuls, model.modules()), level)


def bind_own_code(modules: Iterable[nn.Module], level: str | None = None) -> list[nn.Module]:
    """Compute modules' own code row by row; returns those that are.

    Args:
        modules: Modules; those whose forward was replaced, or of a dtype of which there is no kernel, stay.
        level: Whose kernels; None: the process's, ``kernel_level()``.
    """
    bound = []
    for module in modules:
        dtypes = {parameter.dtype for parameter in module.parameters(recurse=False)}
        has_kernels = all(kernels(dtype, level) is not None for dtype in dtypes | {torch.float32})
        if has_kernels and "forward" not in vars(module):
            module.forward = OwnCode(module, level)
            bound.append(module)
    return bound


def company_reason(model: nn.Module) -> str | None:
    """Why a row's bits may depend on what other rows there are; None where no such matmul is known."""
    for module in model.modules():
        forward = vars(module).get("forward")
        is_unknown = isinstance(forward, OwnCode) and forward.unknown is not None
        if is_unknown or (has_own_matmuls(module) and not isinstance(forward, RowForward)):
            name = type(module).__name__
            return f"{name} multiplies matrices by torch, which may sum as their sizes demand"
    return None
