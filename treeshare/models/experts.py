"""Mixtures of experts on the compiled kernels: a row's bits do not depend on what other rows chose.

A matmul library is given an expert's rows together, and may sum in another order when their number changes;
so a completion would depend on which experts others use. Here each expert is two linear layers and the
operations between them, all of which keep a row's bits, and a row's sum is taken in the order in which its
router named its experts, as transformers' ``grouped_mm`` takes it.

No class is known by its name. What a module of experts computes is tried on small random experts: the
operations between its linear layers are traced like a decoder layer's (``fusion``), and the result is
compared with the module's own forward. A module that the kernel does not compute keeps its forward, with
matmuls one by one by the kernel (``own_code.py``).
"""

from __future__ import annotations

import copy
import ctypes
import inspect
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from treeshare.attention import AttentionSpec
from treeshare.models.fusion.compiler import compile_recipe
from treeshare.models.fusion.graph import Unfusable
from treeshare.models.fusion.judge import ERROR, LOST, NUM_ROWS, Call
from treeshare.models.fusion.layer import FLOATS, Workspace
from treeshare.models.fusion.program import FIRST_TABLE
from treeshare.models.fusion.recipe import find_recipe
from treeshare.models.linear import RowForward
from treeshare.models.step import current_step
from treeshare.native import kernels, structs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from treeshare.models.fusion.program import Program

_UP_NAMES = ("gate_up_proj", "up_proj")
"""What transformers calls the first linear layer of all experts, with a gate and without."""

_PROBE = (3, 48, 40)
"""Experts that a module is judged with: how many, their inputs, and those of their second linear layer."""


@dataclass(frozen=True)
class Layout:
    """How a module holds its experts.

    Attributes:
        up: The name of the first linear layer's weights, ``[experts, outputs, inputs]``.
        is_transposed: Whether weights are ``[experts, inputs, outputs]``.
        takes_turns: Whether the first layer's outputs belong to a gate and its counterpart by turns.
    """

    up: str
    is_transposed: bool
    takes_turns: bool


class _GateAsLayer(nn.Module):
    """What lies between an expert's linear layers as if it were a decoder layer, so that it can be traced."""

    def __init__(self, gate: Callable[[Tensor], Tensor], takes_turns: bool) -> None:
        super().__init__()
        self._gate, self._takes_turns = gate, takes_turns

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The second linear layer's input, of ``[1, T, outputs]`` of the first."""
        rows = hidden_states[0]
        if self._takes_turns:
            rows = torch.stack(rows.chunk(2, -1), -1).view(rows.shape)
        head = self._gate(rows).unsqueeze(1)
        return current_step().attend(head, head, head, AttentionSpec(scale=1.0)).view(1, len(rows), -1)


class ExpertsForward(RowForward):
    """The forward of one module of experts.

    Args:
        module: The module; its weights may be changed in place.
        layout: How it holds them.
        workspace: Memory for activations, shared by a model's modules.
        level: Whose kernels; None: the process's, ``kernel_level()``.

    Raises:
        Unfusable: If no kernel computes what lies between its linear layers.
    """

    def __init__(
        self,
        module: Any,  # noqa: ANN401
        layout: Layout,
        workspace: Workspace,
        level: str | None = None,
    ) -> None:
        self._module, self._layout, self._workspace = module, layout, workspace
        self._dtype: torch.dtype = getattr(module, layout.up).dtype
        self._kernel: Any = kernels(self._dtype, level).treeshare_experts  # type: ignore[union-attr]
        self._addresses: tuple[int | None, ...] = ()
        self._linears: list[Any] = []
        (_, width, _), _ = self._shapes()
        self._gate = _find_gate(module, layout, width, self._dtype)
        steps = self._gate.before
        self._operations = (structs.Operation * len(steps))(*(step.operation for step in steps))
        self._buffers = (structs.Buffer * (FIRST_TABLE + len(self._gate.buffers)))()
        self._program = structs.Program(
            ctypes.addressof(self._operations),
            len(steps),
            ctypes.addressof(self._buffers),
            0,
            self._gate.row_numbers,
            None,
            None,
        )

    def __call__(self, hidden_states: Tensor, *routing: Tensor, **named: Tensor) -> Tensor:
        """``[T, outputs]`` for rows ``[T, inputs]``, the experts of each ``[T, k]``, and their weights."""
        chosen, weights = (*routing, *named.values())
        self._bind_weights()
        num_experts, num_inputs, num_outputs = self._module_shape()
        num_rows, top_k = chosen.shape
        x = hidden_states.contiguous()
        chosen = chosen.contiguous()
        factors = weights.to(torch.float32).contiguous()
        out = torch.empty(num_rows, num_outputs, dtype=self._dtype)
        memory = self._reserve(num_rows * top_k, num_inputs, num_outputs, num_experts)
        up, down = self._linears
        experts = structs.Experts(
            *map(ctypes.addressof, (up, down, self._program)),
            self._gate.heads[0].buffer,
            num_experts,
            num_rows,
            top_k,
            self._layout.takes_turns,
            weights.dtype == self._dtype,
            *(tensor.data_ptr() for tensor in (x, chosen, factors, out, *memory)),
        )
        self._kernel(ctypes.byref(experts))
        return out

    def _reserve(self, count: int, num_inputs: int, num_outputs: int, num_experts: int) -> list[Tensor]:
        """Memory for ``count`` rows of experts."""
        widths = [(self._shapes()[0][1], False), (0, False), *self._gate.buffers]
        for index, (width, is_float32) in enumerate(widths):
            dtype = torch.float32 if is_float32 else self._dtype
            rows = self._workspace.reserve(index, count, width, dtype)
            self._buffers[index] = structs.Buffer(rows.data_ptr(), width, dtype == torch.float32)
        rest = [
            (1, num_experts + 1, torch.int64),
            (count, 1, torch.int64),
            (count, num_inputs, self._dtype),
            (count, num_outputs, self._dtype),
        ]
        return [self._workspace.reserve(index, *part) for index, part in enumerate(rest, len(widths))]

    def _shapes(self) -> list[torch.Size]:
        """Of both weights, as ``[experts, outputs, inputs]``."""
        return [
            _outputs_first(weight, self._layout).shape
            for weight, _ in _parameters(self._module, self._layout)
        ]

    def _module_shape(self) -> tuple[int, int, int]:
        """Experts, inputs and outputs."""
        (num_experts, _, num_inputs), (_, num_outputs, _) = self._shapes()
        return num_experts, num_inputs, num_outputs

    def _bind_weights(self) -> None:
        """Take the weights from where they are."""
        pairs = _parameters(self._module, self._layout)
        addresses = tuple(None if tensor is None else tensor.data_ptr() for pair in pairs for tensor in pair)
        if addresses == self._addresses:
            return
        self._addresses, self._linears = addresses, []
        for weight, bias in pairs:
            parts = _outputs_first(weight, self._layout)
            if parts.dtype != self._dtype or not parts.is_contiguous():
                raise AssertionError("experts' weights may only be changed in place")
            size = parts.dtype.itemsize
            linears = (structs.Linear * len(parts))()
            for index in range(len(parts)):
                offset = None if bias is None else bias.data_ptr() + index * bias.shape[1] * size
                linears[index] = structs.Linear(
                    parts.data_ptr() + index * parts.stride(0) * size, offset, parts.shape[2], parts.shape[1]
                )
            self._linears.append(linears)


def bind_experts(model: nn.Module, level: str | None = None) -> list[nn.Module]:
    """Replace the forward of every module of experts that the kernel computes; returns these modules.

    Transposed weights are turned round in memory; they keep their shape.

    Args:
        model: A model.
        level: Whose kernels; None: the process's, ``kernel_level()``.
    """
    workspace, bound = Workspace(), []
    for module in model.modules():
        up = next((name for name in _UP_NAMES if name in module._parameters), None)
        if up is None or "forward" in vars(module):
            continue
        layout = find_layout(module, up, level)
        if layout is None:
            continue
        for weight, bias in _parameters(module, layout):
            weight.data = _turned(weight.data, layout)
            if bias is not None:
                bias.data = bias.data.contiguous()
        module.forward = ExpertsForward(module, layout, workspace, level)
        bound.append(module)
    return bound


def find_layout(module: Any, up: str, level: str | None = None) -> Layout | None:  # noqa: ANN401
    """How a module holds its experts; None if the kernel does not compute what it does."""
    tensors = [tensor for tensor in (*_named(module, up), *_named(module, "down_proj")) if tensor is not None]
    dtype, ranks = tensors[0].dtype, [tensor.dim() for tensor in tensors]
    if kernels(dtype, level) is None or any(tensor.dtype != dtype for tensor in tensors):
        return None
    if len(ranks) not in (2, 4) or ranks.count(3) != 2 or module._parameters.get("down_proj") is None:
        return None
    layouts = [Layout(up, *flags) for flags in itertools.product((False, True), repeat=2)]
    fitting = [
        (runs, layout)
        for layout in layouts
        if _has_fitting_shapes(module, layout) and (runs := _num_runs(module, layout)) is not None
    ]
    fitting.sort(key=lambda pair: pair[0])
    return next((layout for _, layout in fitting if _is_computed(module, layout, level)), None)


def _num_runs(module: Any, layout: Layout) -> int | None:  # noqa: ANN401
    """Runs of numbers side by side between a module's linear layers: fewer are faster; None: no program."""
    (up, _), _ = _parameters(module, layout)
    try:
        program = _find_gate(module, layout, _outputs_first(up, layout).shape[1], up.dtype)
    except Unfusable:
        return None
    return sum(int(step.operation.groups) for step in program.before)


def _has_fitting_shapes(module: Any, layout: Layout) -> bool:  # noqa: ANN401
    """Whether the second linear layer takes what the first gives, once or in two halves."""
    (up, _), (down, _) = _parameters(module, layout)
    (num, outputs, inputs), other = (_outputs_first(weight, layout).shape for weight in (up, down))
    halves = outputs == 2 * other[2]
    is_even = up.dtype == torch.float32 or not (inputs % 2 or other[2] % 2)
    return (
        is_even
        and (num, inputs) == (other[0], other[1])
        and (halves or (outputs == other[2] and not layout.takes_turns))
    )


@torch.inference_mode()
def _is_computed(module: Any, layout: Layout, level: str | None) -> bool:  # noqa: ANN401
    """Compare the kernel with the module's own forward, on few and small experts."""
    draws = torch.Generator().manual_seed(0)
    try:
        probe = _small_copy(module, layout, draws)
        dtype = getattr(probe, layout.up).dtype
        num, inputs, _ = _PROBE
        exact_dtype = torch.float64 if dtype == torch.float32 else torch.float32
        rows = (
            torch.randn(NUM_ROWS, inputs, generator=draws)
            * torch.tensor([1.0, 0.1, 10.0]).repeat(3)[:NUM_ROWS, None]
        )
        chosen = torch.rand(NUM_ROWS, num, generator=draws).argsort(-1)[:, :2]
        weights = torch.rand(NUM_ROWS, 2, generator=draws).to(dtype)
        run = inspect.unwrap(type(probe).forward)
        own = run(probe, rows.to(dtype), chosen, weights).double()
        exact_probe = copy.deepcopy(probe).to(exact_dtype)
        exact = run(exact_probe, rows.to(dtype).to(exact_dtype), chosen, weights.to(exact_dtype)).double()
        got = ExpertsForward(probe, layout, Workspace(), level)(rows.to(dtype), chosen, weights).double()
    except (Unfusable, *LOST):
        return False
    if not got.shape == own.shape == exact.shape:
        return False
    size = exact.abs().amax(-1)
    error, own_error = ((result - exact).abs().amax(-1) for result in (got, own))
    return bool((error <= ERROR * (own_error + size * torch.finfo(dtype).eps)).all())


def _small_copy(module: Any, layout: Layout, draws: torch.Generator) -> Any:  # noqa: ANN401
    """The module with few, small and random experts."""
    num, inputs, middle = _PROBE
    (up, up_bias), (down, down_bias) = _parameters(module, layout)
    num_own, outputs, _ = _outputs_first(up, layout).shape
    outputs = middle * (outputs // _outputs_first(down, layout).shape[2])
    memo: dict[int, Any] = {}
    for tensor, rows, columns in (
        (up, outputs, inputs),
        (down, inputs, middle),
        (up_bias, None, outputs),
        (down_bias, None, inputs),
    ):
        if tensor is None:
            continue
        shape = (num, columns) if rows is None else (num, rows, columns)
        numbers = torch.randn(shape, generator=draws) * (1.0 if rows is None else columns**-0.5)
        numbers = numbers.to(tensor.dtype)
        if rows is not None and layout.is_transposed:
            numbers = numbers.transpose(1, 2)
        memo[id(tensor)] = nn.Parameter(numbers, requires_grad=False)
    probe = copy.deepcopy(module, memo)
    for name, value in vars(probe).items():
        if name == "num_experts" and value == num_own:
            setattr(probe, name, num)
    return probe


def _find_gate(module: Any, layout: Layout, width: int, dtype: torch.dtype) -> Program:  # noqa: ANN401
    """The program of what lies between a module's linear layers; its result is the only head."""
    gate = (
        getattr(module, "_apply_gate", None) if layout.up == _UP_NAMES[0] else getattr(module, "act_fn", None)
    )
    if gate is None:
        raise Unfusable("experts without a known gate")
    call = Call(_GateAsLayer(gate, layout.takes_turns), (torch.zeros(1, NUM_ROWS, width, dtype=dtype),), {})
    program = compile_recipe(find_recipe(call.trace(), dtype), FLOATS)
    head = program.heads[0]
    if (
        program.tables
        or head.offset
        or any(step.linears or step.weight is not None for step in program.before)
    ):
        raise Unfusable("what lies between the experts' linear layers has weights")
    return program


def _parameters(module: Any, layout: Layout) -> list[tuple[Any, Any]]:  # noqa: ANN401
    """Weights and biases of both linear layers, as the module holds them."""
    return [_named(module, layout.up), _named(module, "down_proj")]


def _named(module: Any, name: str) -> tuple[Any, Any]:  # noqa: ANN401
    return module._parameters.get(name), module._parameters.get(f"{name}_bias")


def _outputs_first(weight: Tensor, layout: Layout) -> Tensor:
    """``[experts, outputs, inputs]``."""
    return weight.transpose(1, 2) if layout.is_transposed else weight


def _turned(weight: Tensor, layout: Layout) -> Tensor:
    """The weight as it is, but for its place in memory: an output's inputs lie side by side."""
    dense = _outputs_first(weight, layout).contiguous()
    return dense.transpose(1, 2) if layout.is_transposed else dense
