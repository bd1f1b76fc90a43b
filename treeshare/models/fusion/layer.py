"""Decoder layers as programs of the compiled kernels, without a copy of the model's code.

A layer keeps its place, its parameters and their names; only its ``forward`` is replaced on the instance.
What it computes is found by running it (``trace.py``), written as the kernels' operations (``recipe.py``,
``compiler.py``), and compared with the layer itself (``judge.py``). Weights that share an input are joined,
so one matmul gives q, k and v, and another gate and up. Results are rounded where transformers rounds them.
"""

from __future__ import annotations

import ctypes
import itertools
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from treeshare.models.fusion.program import ATTENDED, FIRST_TABLE, HIDDEN, Called
from treeshare.models.linear import LINEAR, SMALL_OPERATIONS
from treeshare.models.quantization import join as join_codes
from treeshare.models.step import current_step
from treeshare.native import int8_kernels, kernels, number_of, structs
from treeshare.stopwatch import OFF

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from treeshare.models.fusion.program import Linears, Program, Step
    from treeshare.models.fusion.tables import StepTables
    from treeshare.models.quantization import Int8Weights

FLOATS: Mapping[int, Int8Weights] = MappingProxyType({})
"""The int8 weights of a model that has none."""


class Workspace:
    """Memory for a layer's activations, kept from layer to layer and from step to step.

    Attributes:
        version: How often any of its memory has moved.
    """

    def __init__(self) -> None:
        self.version = 0
        self._memory: list[Tensor] = []

    def reserve(self, index: int, num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Memory ``[num_rows, width]`` for a buffer; what the last call gave is overwritten or freed."""
        size = num_rows * width * dtype.itemsize
        while len(self._memory) <= index:
            self._memory.append(torch.empty(0, dtype=torch.uint8))
        if len(self._memory[index]) < size:
            self._memory[index] = torch.empty(size, dtype=torch.uint8)
            self.version += 1
        return self._memory[index][:size].view(dtype).view(num_rows, width)


class FusedLayer:
    """The fused forward of one decoder layer.

    Args:
        program: The layer's program. Its linear layers' weights are moved, not copied; from now on they may
            only be changed in place.
        dtype: Of weights and hidden states.
        workspace: Memory for a layer's activations, shared by a model's layers.
        tables: What layers prepare once a step, shared likewise.
        codes: The model's int8 weights, by the identities of their parameters; moved likewise.
        level: Whose kernels; None: the process's, ``kernel_level()``. Int8 matmuls are always the process's.
        layer: The layer, whose blocks the program calls; None: it calls none.

    Attributes:
        joined: The weights that replace several of the model's: such as those of q, k and v.
        stopwatch: Is told how long its matmuls took, and the rest.
    """

    def __init__(
        self,
        program: Program,
        dtype: torch.dtype,
        workspace: Workspace,
        tables: StepTables,
        codes: Mapping[int, Int8Weights] = FLOATS,
        level: str | None = None,
        layer: nn.Module | None = None,
    ) -> None:
        self._layer = layer
        self._program, self._dtype, self._workspace, self._codes = program, dtype, workspace, codes
        self._run_kernel: Any = kernels(dtype, level).treeshare_run  # type: ignore[union-attr]
        self._tables = [(tables, tables.number(table), table) for table in program.tables]
        self._buffers = (structs.Buffer * (FIRST_TABLE + len(program.tables) + len(program.buffers)))()
        self._nanoseconds = np.zeros(2, np.int64)
        self.joined: list[Tensor] = []
        self._coded: list[tuple[structs.Int8Linear, Int8Weights]] = []
        self.stopwatch = OFF
        self._before, self._after = self._parts(program.before), self._parts(program.after)
        self._first = FIRST_TABLE + len(program.tables)
        self._fitted = (-1, -1)
        self._heads: list[Tensor] = []
        self._memory: dict[int, Tensor] = {}

    @property
    def block(self) -> nn.Module | None:
        """The block that it calls, if there is one."""
        parts = [part for part in (*self._before, *self._after) if isinstance(part, Called)]
        return self._layer.get_submodule(parts[0].block.name) if parts and self._layer else None

    def _parts(self, steps: list[Step]) -> list[Any]:
        """Programs, and calls of blocks between them."""
        parts: list[Any] = []
        for called, group in itertools.groupby(steps, key=lambda step: step.called):
            parts.append(called or self._part(list(group)))
        return parts

    def _part(self, steps: list[Step]) -> tuple[Any, structs.Program]:
        """Operations that follow one another, with the addresses of their weights."""
        operations = (structs.Operation * len(steps))(*(step.operation for step in steps))
        for operation, step in zip(operations, steps, strict=True):
            if step.linears is not None:
                weight, bias = join(step.linears)
                self.joined.append(weight)
                operation.linear = structs.Linear(_address(weight), _address(bias), *reversed(weight.shape))
            elif step.coded:
                operation.int8 = ctypes.addressof(self._coded_linear(step))
            else:
                operation.linear = structs.Linear(_address(step.weight), _address(step.bias), 0, 0)
        program = structs.Program(
            ctypes.addressof(operations),
            len(steps),
            ctypes.addressof(self._buffers),
            0,
            self._program.row_numbers,
            None,
            ctypes.cast(int8_kernels().treeshare_apply_int8, ctypes.c_void_p) if self._codes else None,  # type: ignore[union-attr]
        )
        return operations, program

    def _coded_linear(self, step: Step) -> structs.Int8Linear:
        """The int8 weights of an operation; of several layers' that are computed together, joined."""
        parts = [self._codes[id(parameter)] for parameter in step.coded]
        weights = join_codes(parts) if step.operation.kind == number_of("LINEAR_INT8") else parts[0]
        self.joined += weights.tensors.values()
        self._coded.append((weights.packed.struct(), weights))
        return self._coded[-1][0]

    def __call__(
        self,
        hidden_states: Tensor,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Tensor:
        """The layer's output ``[1, T, width]``, written over its input."""
        program, num_rows = self._program, hidden_states.shape[1]
        hidden = hidden_states if hidden_states.is_contiguous() else hidden_states.contiguous()
        if self._fitted != (num_rows, self._workspace.version):
            self._fit(num_rows)
        self._set(HIDDEN, hidden[0])
        prepared = [tables.get(number, table, args, kwargs) for tables, number, table in self._tables]
        for index, rows in enumerate(prepared, FIRST_TABLE):
            self._set(index, rows)
        self._run_all(self._before, hidden[0])
        query, key, value = self._heads
        attended = current_step().attend(query, key, value, program.attend.spec, program.attend.sinks)
        attended = attended.contiguous().view(num_rows, -1)
        self._set(ATTENDED, attended)
        self._run_all(self._after, hidden[0])
        return hidden

    def _run_all(self, parts: list[Any], hidden: Tensor) -> None:
        """Compute half a layer."""
        for part in parts:
            if isinstance(part, Called):
                self._call(part, hidden)
            else:
                self._run(part[1], len(hidden))

    def _call(self, called: Called, hidden: Tensor) -> None:
        """Call one of the layer's blocks."""
        assert self._layer is not None
        self.stopwatch.lap(SMALL_OPERATIONS)
        source = hidden if called.source == HIDDEN else self._memory[called.source]
        output = self._layer.get_submodule(called.block.name)(source.unsqueeze(0))
        first = output if called.block.others is None else output[0]
        self._memory[called.target].copy_(first.reshape(source.shape))
        self.stopwatch.lap(LINEAR)

    def _fit(self, num_rows: int) -> None:
        """Say where numbers of so many rows are."""
        program, memory = self._program, self._memory
        memory.clear()
        for index, (width, is_float32) in enumerate(program.buffers):
            dtype = torch.float32 if is_float32 else self._dtype
            memory[self._first + index] = self._workspace.reserve(index, num_rows, width, dtype)
            self._set(self._first + index, memory[self._first + index])
        self._heads = [
            memory[part.buffer][:, part.offset : part.offset + part.num_heads * width].view(
                num_rows, part.num_heads, width
            )
            for part, width in zip(program.heads, program.attend.widths, strict=True)
        ]
        self._fitted = num_rows, self._workspace.version

    def _set(self, index: int, rows: Tensor) -> None:
        buffer = self._buffers[index]
        buffer.address = rows.data_ptr()
        buffer.row_stride = 0 if len(rows) == 1 else rows.stride(0)
        buffer.is_float32 = rows.dtype == torch.float32

    def _run(self, part: structs.Program, num_rows: int) -> None:
        """Compute a part of a layer; its time is divided as the threads spent theirs."""
        part.num_rows = num_rows
        if self.stopwatch.enabled:
            self.stopwatch.lap(SMALL_OPERATIONS)
            self._nanoseconds[:] = 0
            part.nanoseconds = self._nanoseconds.ctypes.data
        self._run_kernel(ctypes.byref(part))
        if self.stopwatch.enabled:
            self.stopwatch.split(
                dict(zip((LINEAR, SMALL_OPERATIONS), self._nanoseconds.tolist(), strict=True))
            )


@torch.no_grad()
def join(linears: Linears) -> tuple[Tensor, Tensor | None]:
    """Weights ``[outputs, inputs]`` and biases of layers with one input, which become views of them."""
    weights = [weight.t() if linears.is_transposed else weight for weight in linears.weights]
    if len(weights) == 1 and weights[0].is_contiguous():
        return weights[0], linears.biases[0]
    joined = torch.cat(weights) if len(weights) > 1 else weights[0].contiguous()
    first = 0
    for parameter, weight in zip(linears.weights, weights, strict=True):
        view = joined[first : first + len(weight)]
        parameter.data = view.t() if linears.is_transposed else view
        first += len(weight)
    biases = list(linears.biases)
    if len(biases) == 1 or biases[0] is None:
        return joined, biases[0]
    joined_bias, first = torch.cat(biases), 0
    for parameter in biases:
        last = first + len(parameter)
        parameter.data = joined_bias[first:last]
        first = last
    return joined, joined_bias


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
