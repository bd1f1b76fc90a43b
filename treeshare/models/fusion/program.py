"""A recipe as the kernels run it: operations in order, and where in memory their numbers are.

Linear layers that share an input are joined. What lies between two of them is computed row by row,
and numbers that no other row's work needs stay in a thread's own memory. A buffer is free again after the
last operation that reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from treeshare.models.fusion.graph import Held, Setup, Unfusable
from treeshare.native import number_of, structs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from treeshare.models.fusion.blocks import Block
    from treeshare.models.fusion.graph import Attend

MATMULS = ("LINEAR", "LINEAR_INT8")
"""Operations that all threads do together; what lies between two of them is done row by row."""

BLOCK = "BLOCK"
"""A block of the layer that is called as it is."""

STAGES = (*MATMULS, BLOCK)
"""Operations that take whole rows and give whole rows: each is a stage of its own."""

HIDDEN, ATTENDED, FIRST_TABLE = 0, 1, 2
"""Buffers: the layer's input, which becomes its output; attention's output; what is prepared once a step."""


class Linears(NamedTuple):
    """Linear layers with one input, whose outputs lie side by side; ``biases`` are parameters, or all None.

    Where ``is_transposed``, weights are ``[inputs, outputs]``.
    """

    weights: tuple[Any, ...]
    biases: tuple[Any, ...]
    is_transposed: bool


class Called(NamedTuple):
    """A call of one of the layer's blocks: which, and the buffers of its input and output."""

    block: Block
    source: int
    target: int


class Step(NamedTuple):
    """One operation, and the parameters that it reads: of linear layers, or a weight and a bias.

    ``coded`` are parameters with int8 weights: of linear layers that are computed together, or of one whose
    input is quantised. ``called`` is done instead of the operation.
    """

    operation: structs.Operation
    linears: Linears | None = None
    weight: Any = None
    bias: Any = None
    coded: tuple[Any, ...] = ()
    called: Called | None = None


class Heads(NamedTuple):
    """Where queries, keys or values are: a buffer, the first number's place in a row, how many heads."""

    buffer: int
    offset: int
    num_heads: int


class Table(NamedTuple):
    """Columns of what is prepared once a step; None: all."""

    source: Setup
    columns: tuple[int, ...] | None


@dataclass
class Program:
    """A layer as the kernels run it.

    Attributes:
        attend: The call of attention.
        before: Operations before it.
        after: Operations after it.
        heads: Where it finds queries, keys and values.
        tables: The buffers from ``FIRST_TABLE`` on.
        buffers: The buffers after them: numbers in a row, and whether they are float32 in any model.
        row_numbers: Numbers of a thread's own memory.
    """

    attend: Attend
    before: list[Step] = field(default_factory=list)
    after: list[Step] = field(default_factory=list)
    heads: list[Heads] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    buffers: list[tuple[int, bool]] = field(default_factory=list)
    row_numbers: int = 0

    def with_weights(self, tensors: Mapping[int, Any], attend: Attend) -> Program:
        """The program of a layer that computes the same with other weights.

        Args:
            tensors: The other layer's weights, by the identity of this layer's.
            attend: Its call of attention.
        """

        def swapped(part: Any) -> Any:  # noqa: ANN401
            if isinstance(part, Held):
                return Held(tensors.get(id(part.tensor), part.tensor))
            if isinstance(part, Setup):
                return Setup(part.function, swapped(part.inputs), swapped(part.options))
            return tuple(map(swapped, part)) if isinstance(part, tuple) else part

        def moved(step: Step) -> Step:
            operation = structs.Operation.from_buffer_copy(step.operation)
            linears = step.linears and Linears(
                tuple(tensors[id(weight)] for weight in step.linears.weights),
                tuple(bias if bias is None else tensors[id(bias)] for bias in step.linears.biases),
                step.linears.is_transposed,
            )
            weight, bias = (part if part is None else tensors[id(part)] for part in (step.weight, step.bias))
            return Step(
                operation, linears, weight, bias, tuple(tensors[id(part)] for part in step.coded), step.called
            )

        return replace(
            self,
            attend=attend,
            before=list(map(moved, self.before)),
            after=list(map(moved, self.after)),
            tables=[Table(swapped(table.source), table.columns) for table in self.tables],
        )

    def require_weights(self, dtype: torch.dtype, seen: Iterable[int] = ()) -> set[int]:
        """Check that the kernels can read the weights where they are.

        Args:
            dtype: Of weights and hidden states.
            seen: Identities of weights that other layers multiply by, which must not be moved again.

        Returns:
            The same with this layer's.

        Raises:
            Unfusable: If they cannot.
        """
        known = set(seen)
        for step in (*self.before, *self.after):
            linears = step.linears or Linears((), (), False)
            for tensor in (step.weight, step.bias, *linears.biases):
                if tensor is not None and (tensor.dtype != dtype or not tensor.is_contiguous()):
                    raise Unfusable(
                        "its layers have weights that do not lie side by side, or of another dtype"
                    )
            for weight in linears.weights:
                num_inputs = weight.shape[0 if linears.is_transposed else 1]
                if weight.dtype != dtype or (num_inputs % 2 and dtype == torch.bfloat16):
                    raise Unfusable("a linear layer has an odd number of bfloat16 inputs or another dtype")
            is_matmul = step.operation.kind in map(number_of, MATMULS)
            for weight in (*linears.weights, *(step.coded if is_matmul else ())):
                if id(weight) in known:
                    raise Unfusable("its layers share weights")
                known.add(id(weight))
        return known
