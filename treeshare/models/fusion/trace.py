"""What a decoder layer computes: its own forward runs once on a few rows, and every operation is noted.

No class or module is known by its name. Each tensor that the layer makes carries a shadow, an integer tensor
of its shape that says of every element which number of which value it is; so whatever only moves numbers
(views, transpositions, ``cat``, ``repeat_interleave``) is applied to the shadow and is no operation. A layer
whose rows mix outside of attention, or that computes something that no kernel does, is ``Unfusable``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from treeshare.models.fusion.graph import Attend, Graph, Setup, Unfusable, Weight
from treeshare.models.fusion.program import BLOCK
from treeshare.models.fusion.shadows import Constant, Rows, Shadows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from treeshare.attention import AttentionSpec
    from treeshare.models.fusion.blocks import Block
    from treeshare.models.fusion.graph import Path


_VIEWS = frozenset(
    {
        "view", "reshape", "transpose.int", "permute", "slice.Tensor", "select.int", "split.Tensor",
        "split_with_sizes", "chunk", "unsqueeze", "squeeze.dim", "expand", "flatten.using_ints", "unbind.int",
        "cat", "stack", "repeat_interleave.self_int", "unflatten.int", "t", "_unsafe_view", "movedim.int",
    }
)  # fmt: skip
"""Operations that only move numbers."""

_SAME = frozenset(
    {"alias", "detach", "contiguous", "clone", "dropout", "to.dtype", "type_as", "_to_copy", "to.device"}
)
"""Operations that give their input, perhaps rounded."""

_UNARY = {
    "silu": "SILU", "relu": "RELU", "tanh": "TANH", "sigmoid": "SIGMOID", "neg": "NEGATE", "expm1": "EXPM1",
    "square": "SQUARE", "rsqrt": "RSQRT",
}  # fmt: skip

_LAYER_NORM_REST = (None, None, 1e-5)
"""What ``layer_norm`` takes where it is not told: weight, bias and epsilon."""

_POWERS = {2: "SQUARE", 3: "CUBE"}

_SEVERAL = {
    "add.Tensor": "ADD", "sub.Tensor": "SUBTRACT", "mul.Tensor": "MULTIPLY", "min.other": "MINIMUM",
    "gt.Scalar": "GREATER", "where.self": "SELECT",
}  # fmt: skip
"""Operations of several numbers, by their kernel's name; ``_UNARY`` those of one."""


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what a layer computes; also the step whose attention it meets.

    Args:
        layer: The layer.
        hidden: ``[1, T, width]``, its input.
        arguments: Its other tensors, by where its forward gets them.
    """

    def __init__(self, layer: nn.Module, hidden: Tensor, arguments: Mapping[Path, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shadows = Shadows(layer, hidden.shape[1])
        self.graph = self._shadows.graph
        for path, tensor in arguments.items():
            axes = [axis for axis, size in enumerate(tensor.shape) if size == self.graph.num_rows]
            if len(axes) == 1:
                self._shadows.add("setup", [], tensor, axes[0], setup=Setup(None, (path,)))
        self._shadows.add("hidden", [], hidden, 1)

    def finish(self, output: Any) -> Graph:  # noqa: ANN401
        """The graph, whose output is that of the layer."""
        if not isinstance(output, torch.Tensor):
            raise Unfusable(f"its layers return a {type(output).__name__}")
        places = self._shadows.rows(output).places
        self.graph.output = self.graph.row_places(places.movedim(self.graph.row_axis(places), 0))
        return self.graph

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec, sinks: Tensor | None = None
    ) -> Tensor:
        """See ``StepAttention``; the result is random."""
        if sinks is not None and not isinstance(sinks, nn.Parameter):
            raise Unfusable("its layers compute attention's sinks")
        with _disable_current_modes():
            operands = [
                self.graph.row_places(self._shadows.rows(tensor).places) for tensor in (query, key, value)
            ]
            heads, widths = zip(*(tensor.shape[1:] for tensor in (query, key, value)), strict=True)
            out = attended(query, value)
            self._shadows.add("attend", operands, out, 0, setup=Attend(spec, heads, widths, sinks))
        return out

    def call(self, block: Block, hidden: Tensor) -> Tensor:
        """Note a call of a block; the result is random."""
        with _disable_current_modes():
            out = after_block(hidden)
            self._last_axis(BLOCK, hidden, out, setup=block)
        return out

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run an operation and note it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._note(func, args, kwargs, out)
        return out

    def _note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:  # noqa: ANN401
        name = str(func).removeprefix("aten.").removesuffix(".default")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        meanings = [self._shadows.meaning(tensor) for tensor in tensors]
        rows = [meaning for meaning in meanings if isinstance(meaning, Rows)]
        if not tensors:
            raise Unfusable(f"its layers make a tensor by {name}")
        if name in _VIEWS and len(rows) == len(tensors):
            self._move(func, args, kwargs, out)
        elif not rows:
            self._shadows.know(out, self._constant(func, name, args, kwargs, meanings))
        elif name in _SAME:
            self._same(name, args[0], out)
        elif all(row.setup is not None for row in rows):
            self._prepare(func, args, kwargs, out)
        else:
            self._compute(name, args, kwargs, out)

    def _move(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:  # noqa: ANN401
        """A view: the same on places."""
        moved = func(*self._shadows.places_of(args), **self._shadows.places_of(kwargs))
        setup = self._shadows.setup(func, args, kwargs)
        many = isinstance(out, (tuple, list))
        for index, tensor in enumerate(out if many else [out]):
            part = Setup(_item, (setup, index)) if many and setup is not None else setup
            self._shadows.know(tensor, Rows(moved[index] if many else moved, part))

    def _same(self, name: str, source: Tensor, out: Tensor) -> None:
        """The input again, perhaps rounded. Wider numbers are the same numbers."""
        meaning = self._shadows.rows(source)
        narrower = out.dtype != source.dtype and out.dtype.itemsize <= source.dtype.itemsize
        if not (out.dtype.is_floating_point and source.dtype.is_floating_point) and out.dtype != source.dtype:
            raise Unfusable(f"its layers convert {source.dtype} to {out.dtype}")
        if not narrower:
            self._shadows.know(out, Rows(meaning.places, meaning.setup))
        elif meaning.setup is not None:
            self._prepare(torch.ops.aten.to.dtype, (source, out.dtype), {}, out)
        else:
            self._elementwise("COPY", [source], out)

    def _compute(self, name: str, args: Any, kwargs: Any, out: Any) -> None:  # noqa: ANN401
        """An operation on hidden states."""
        if name == "gelu":
            kind = {"none": "GELU", "tanh": "GELU_TANH"}[kwargs.get("approximate", "none")]
            self._elementwise(kind, args[:1], out)
        elif name in _UNARY:
            self._elementwise(_UNARY[name], args[:1], out)
        elif name == "clamp" and not any(isinstance(limit, torch.Tensor) for limit in args[1:]):
            self._clamp(out, *args, **kwargs)
        elif name == "pow.Tensor_Scalar" and args[1] in _POWERS:
            self._elementwise(_POWERS[args[1]], args[:1], out)
        elif name in _SEVERAL and not kwargs:
            self._elementwise(_SEVERAL[name], args, out)
        elif name in ("linear", "addmm"):
            self._linear(name, args, out)
        elif name == "mean.dim" and list(args[1]) == [-1] and args[2:] == (True,):
            self._last_axis("MEAN", args[0], out)
        elif name == "layer_norm" and len(args[1]) == 1:
            rest: list[Any] = [*args[2:5], *_LAYER_NORM_REST[len(args) - 2 :]]
            weights = {"weight": self._shadows.weight(rest[0]), "bias": self._shadows.weight(rest[1])}
            self._last_axis("LAYER_NORM", args[0], out, number=rest[2], **weights)
        else:
            raise Unfusable(f"its layers compute {name.split('.')[0]}, which no kernel does")

    def _clamp(self, out: Tensor, x: Tensor, min: float | None = None, max: float | None = None) -> None:
        """At least ``min``, then at most ``max``; None is no limit."""
        limits = [(kind, limit) for kind, limit in (("MAXIMUM", min), ("MINIMUM", max)) if limit is not None]
        for kind, limit in limits:
            result = out if (kind, limit) == limits[-1] else torch.empty_like(out)
            self._elementwise(kind, [x, limit], result)
            x = result

    def _linear(self, name: str, args: Any, out: Tensor) -> None:  # noqa: ANN401
        """A linear layer; the weights of ``addmm`` are ``[inputs, outputs]``."""
        x, weight, bias = (args[1], args[2], args[0]) if name == "addmm" else [*args, None][:3]
        held = self._shadows.weight(weight)
        if held is None or held.plus_one:
            raise Unfusable("its layers multiply by what is no weight")
        flags = frozenset({"transposed"} if name == "addmm" else ())
        self._last_axis("LINEAR", x, out, weight=held, bias=self._shadows.weight(bias), flags=flags)

    def _last_axis(self, kind: str, x: Tensor, out: Tensor, **attributes: Any) -> None:  # noqa: ANN401
        """An operation along the last dimension."""
        places = self._shadows.rows(x).places
        axis = self.graph.row_axis(places)
        if axis == places.dim() - 1:
            raise Unfusable("its layers mix rows")
        self._shadows.add(kind, [self.graph.row_places(places.movedim(axis, 0))], out, axis, **attributes)

    def _elementwise(self, kind: str, args: Sequence[Any], out: Tensor) -> None:
        """An operation on numbers in the same place of its operands."""
        operands: list[Any] = []
        axis = None
        for argument in args:
            meaning = self._shadows.meaning(argument) if isinstance(argument, torch.Tensor) else None
            if isinstance(meaning, Rows):
                places = meaning.places.expand(out.shape)
                own = self.graph.row_axis(places)
                if axis not in (None, own):
                    raise Unfusable("its layers mix rows")
                axis = own
                operands.append(places)
            elif meaning is None and not isinstance(argument, torch.Tensor):
                operands.append(float(argument))
            else:
                assert isinstance(meaning, Constant)
                operands.append(meaning)
        assert axis is not None
        columns = out.shape[:axis] + out.shape[axis + 1 :]
        self._shadows.add(kind, [self._operand(operand, columns, axis) for operand in operands], out, axis)

    def _operand(self, operand: Any, columns: torch.Size, axis: int) -> Any:  # noqa: ANN401
        if isinstance(operand, torch.Tensor):
            return self.graph.row_places(operand.movedim(axis, 0))
        if not isinstance(operand, Constant):
            return operand
        weight = operand.weight
        if weight is not None and weight.parameter.tensor.shape == columns[-1:] and columns[-1] > 1:
            return weight
        return Setup(_spread, (operand.setup, tuple(columns)))

    def _prepare(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:  # noqa: ANN401
        """An operation on a step's arguments alone: torch computes it once a step."""
        if not isinstance(out, torch.Tensor):
            raise Unfusable(f"its layers prepare positions by {func}")
        axes = [axis for axis, size in enumerate(out.shape) if size == self.graph.num_rows]
        setup = self._shadows.setup(func, args, kwargs)
        if len(axes) != 1 or setup is None:
            raise Unfusable(f"its layers prepare positions by {func}")
        self._shadows.add("setup", [], out, axes[0], setup=setup)

    def _constant(self, func: Any, name: str, args: Any, kwargs: Any, meanings: Any) -> Constant:  # noqa: ANN401
        """A tensor made of weights alone."""
        setup = self._shadows.setup(func, args, kwargs)
        if setup is None:
            raise Unfusable("its layers change their weights' shapes by the number of rows")
        weight: Weight | None = meanings[0].weight
        numbers = [leaf for leaf in args if isinstance(leaf, (int, float)) and not isinstance(leaf, bool)]
        widened = name in ("to.dtype", "float") and torch.float32 in tree_leaves((args, kwargs))
        if weight is not None and name == "add.Tensor" and numbers == [1.0] and not weight.plus_one:
            weight = Weight(weight.parameter, plus_one=True)
        elif not widened:
            weight = None
        return Constant(setup, weight)


def attended(query: Tensor, value: Tensor) -> Tensor:
    """What attention gives a layer that is followed: random numbers."""
    shape = *query.shape[:2], value.shape[2]
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(query.dtype)


def after_block(hidden: Tensor) -> Tensor:
    """The same of a block."""
    return torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1)).to(hidden.dtype)


def _item(parts: Any, index: int) -> Any:  # noqa: ANN401
    return parts[index]


def _spread(tensor: Tensor, columns: tuple[int, ...]) -> Tensor:
    """A constant in every column, a row of it."""
    return tensor.expand(columns).reshape(1, -1)
