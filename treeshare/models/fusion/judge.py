"""Compares a layer's program with the layer itself, before it is used."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map

from treeshare.models.fusion.blocks import Stub, find_block, replaced
from treeshare.models.fusion.compiler import compile_recipe
from treeshare.models.fusion.graph import Unfusable
from treeshare.models.fusion.layer import FLOATS, FusedLayer, Workspace
from treeshare.models.fusion.recipe import find_recipe
from treeshare.models.fusion.record import Record
from treeshare.models.fusion.tables import StepTables
from treeshare.models.fusion.trace import Trace
from treeshare.models.quantization import (
    OracleLinear,
    QuantizedLinear,
    codes_by_parameter,
    own_forwards,
    quantize_linear,
    quantized_linears,
)
from treeshare.models.step import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from treeshare.attention import AttentionSpec
    from treeshare.models.fusion.blocks import Block
    from treeshare.models.fusion.graph import Attend, Graph, Path
    from treeshare.models.fusion.program import Program
    from treeshare.models.quantization import Int8Weights

NUM_ROWS = 7
"""Rows that a layer is traced and judged with: more than one, and unlike most sizes."""

_SCALES = (1.0, 1e-3, 30.0)
"""Of hidden states: among small ones an epsilon shows, among large ones a limit."""

ERROR = 4.0
"""Maximum error of a program, in units of the layer's own and a rounding of its row's largest number."""

_OTHER_CODE = 1 / 256
"""What a number that lies between two codes, and gets the other, may change in units of a row's largest."""

LOST = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError)
"""What model code may raise when it is followed, or what follows it."""


class Call:
    """A layer's call as its model makes it.

    Args:
        layer: The layer.
        args: Arguments; the first are hidden states, unless they are a keyword.
        kwargs: Keywords; the step is left out.
        like: A call of the same layer, or a copy of it, whose block is known.

    Attributes:
        block: The layer's block, or None.

    Raises:
        Unfusable: If hidden states are not ``[1, NUM_ROWS, width]``.
    """

    def __init__(self, layer: nn.Module, args: Any, kwargs: Any, like: Call | None = None) -> None:  # noqa: ANN401
        self.layer = layer
        kwargs = dict(kwargs)
        first = args[0] if args else kwargs.pop("hidden_states", None)
        if not isinstance(first, torch.Tensor) or first.dim() != 3 or first.shape[:2] != (1, NUM_ROWS):
            raise Unfusable("its layers take something else than hidden states")
        self.hidden = first
        self.args = args[1:]
        self.kwargs = kwargs
        self.block: Block | None = like.block if like else find_block(layer, first)

    def trace(self) -> Graph:
        """What the layer computes.

        Raises:
            Unfusable: If that cannot be followed.
        """
        trace = Trace(self.layer, self.hidden, self._arguments())
        try:
            return trace.finish(self._follow(trace))
        except LOST as error:
            raise Unfusable(f"its layers cannot be followed ({type(error).__name__}: {error})") from error

    def record(self) -> tuple[object, Attend | None]:
        """What layers with equal traces have in common, and the layer's call of attention.

        The first is like no other layer's where its operations cannot be compared.
        """
        record = Record(self.layer, self.hidden, self._arguments())
        try:
            key = record.key(self._follow(record))
            hash(key)
        except (*LOST, Unfusable):  # a trace says why
            return object(), None
        return key, next(iter(record.attends), None)

    def _arguments(self) -> dict[Path, Tensor]:
        """Tensors beside hidden states."""
        return dict(_tensors(self.args, ())) | dict(_tensors(self.kwargs, ()))

    def _follow(self, step: Trace | Record) -> Any:  # noqa: ANN401
        """Run the layer, with its linear layers' own forwards, and give its output."""
        block = self.block

        def call(hidden: Tensor) -> Tensor:
            assert block is not None
            return step.call(block, hidden)

        own = (own_forwards(self.layer), replaced(self.layer, block, call))
        with torch.inference_mode(), own[0], own[1], running(step), step:
            return self.layer.forward(self.hidden, *self.args, **self.kwargs)

    def of(self, layer: nn.Module, hidden: Tensor) -> Call:
        """The same call of another layer, with ``hidden`` and arguments of its dtype."""

        def convert(leaf: Any) -> Any:  # noqa: ANN401
            is_float = isinstance(leaf, torch.Tensor) and leaf.dtype.is_floating_point
            return leaf.to(hidden.dtype) if is_float else leaf

        args, kwargs = tree_map(convert, (self.args, self.kwargs))
        return Call(layer, (hidden, *args), kwargs, self)

    def run(self, forward: Callable[..., Tensor], hidden: Tensor) -> Tensor:
        """``[NUM_ROWS, width]`` of a forward, its arguments in the dtype of ``hidden``."""
        call = self.of(self.layer, hidden)
        try:
            with running(Mixer()):
                return forward(hidden, *call.args, **call.kwargs)[0]
        except LOST as error:  # such as a forward that somebody replaced, which is bound to the layer itself
            raise Unfusable(f"a copy of its layers does not run ({type(error).__name__}: {error})") from error


class Mixer:
    """An attention whose output depends on every number that it is given, and on no other row."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec, sinks: Tensor | None = None
    ) -> Tensor:
        """See ``StepAttention``."""
        group, width = query.shape[1] // key.shape[1], value.shape[2]
        keys, values = (tensor.repeat_interleave(group, 1) for tensor in (key, value))
        # Of more numbers of a key than of a value, several are added to one.
        mixed = query - 0.5 * keys.roll(1, -1)
        out = 0.25 * values.roll(2, -1)
        for first in range(0, mixed.shape[2], width):
            part = mixed[..., first : first + width]
            out[..., : part.shape[2]] += part
        return out if sinks is None else out + sinks.to(out.dtype).unsqueeze(1)


@torch.inference_mode()
def judge(
    call: Call,
    dtype: torch.dtype,
    change: Callable[[Program], None] = lambda program: None,
    level: str | None = None,
) -> None:
    """Compare a layer's program with the layer, both with random weights.

    A bias that is zero and a norm's weight that is one would hide that they are left out. Int8 weights are
    made of the random ones, and the layer's own linear layers are what codes should compute, in float64. A
    number that is rounded otherwise in bfloat16 becomes another code, which hides small faults; so such a
    layer is compared in float32, too.

    Args:
        call: The layer and its arguments.
        dtype: Of its weights.
        change: Is called with the program before it runs.
        level: Whose kernels; None: the process's, ``kernel_level()``.

    Raises:
        Unfusable: If they differ by more than rounding.
    """
    widths = {name: weights.format.transform for name, weights in quantized_linears(call.layer).items()}
    probe = _with_random_weights(call)
    for kind in (dtype, torch.float32) if widths and dtype != torch.float32 else (dtype,):
        _compare(call, copy.deepcopy(probe).to(kind), widths, kind, change, level)


def _compare(
    call: Call,
    probe: nn.Module,
    widths: Mapping[str, int],
    dtype: torch.dtype,
    change: Callable[[Program], None],
    level: str | None,
) -> None:
    """Compare ``probe``, whose linear layers ``widths`` are quantised, with its program."""
    exact_dtype = torch.float64 if dtype == torch.float32 else torch.float32
    hidden = torch.randn(call.hidden.shape, generator=torch.Generator().manual_seed(1))
    hidden = (hidden * torch.tensor(_SCALES).repeat(NUM_ROWS)[:NUM_ROWS, None]).to(dtype)
    exact = call.run(
        _by_oracle(copy.deepcopy(probe).to(exact_dtype), widths), hidden.to(exact_dtype)
    ).double()
    own = call.run(_by_oracle(copy.deepcopy(probe), widths), hidden.clone()).double()
    codes = _quantized(probe, widths)
    program = compile_recipe(find_recipe(call.of(probe, hidden).trace(), dtype), codes)
    program.require_weights(dtype)
    change(program)
    fused = FusedLayer(program, dtype, Workspace(), StepTables(dtype), codes, level, probe)
    error, own_error = ((result - exact).abs().amax(-1) for result in (call.run(fused, hidden.clone()), own))
    size, spacing = exact.abs().amax(-1), torch.finfo(dtype).eps
    budget = ERROR * (own_error + size * spacing) + (size * _OTHER_CODE if widths else 0)
    if not bool((error <= budget).all()):
        worst = float((error / size.clamp_min(torch.finfo(dtype).tiny)).max())
        raise Unfusable(f"its compiled layers differ from its own by {worst:.2g} of the largest number")


def _by_oracle(layer: nn.Module, widths: Mapping[str, int]) -> Callable[..., Tensor]:
    """The forward of a layer of its own, whose linear layers are the oracle's where they are quantised."""
    for name, width in widths.items():
        linear = layer.get_submodule(name)
        linear.forward = OracleLinear(linear, width)
    return layer.forward


def _quantized(layer: nn.Module, widths: Mapping[str, int]) -> Mapping[int, Int8Weights]:
    """Quantise the linear layers of a layer of its own, and keep their floats: codes by their parameters."""
    for name, width in widths.items():
        linear = layer.get_submodule(name)
        linear.forward = QuantizedLinear(quantize_linear(linear, width))
    return codes_by_parameter(layer) or FLOATS


def _with_random_weights(call: Call) -> nn.Module:
    """A copy of a layer with random weights, without its block."""
    memo: dict[int, Any] = {}
    if call.block is not None:
        memo[id(call.layer.get_submodule(call.block.name))] = Stub(call.block)
    with own_forwards(call.layer):
        probe = copy.deepcopy(call.layer, memo)
    draws = torch.Generator().manual_seed(0)
    for parameter in probe.parameters():
        noise = torch.randn(parameter.shape, generator=draws)
        scaled = (
            noise * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else parameter.float() + 0.3 * noise
        )
        parameter.copy_(scaled)
    return probe


def _tensors(part: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:  # noqa: ANN401
    """Tensors in nested arguments."""
    if isinstance(part, torch.Tensor):
        yield path, part
    elif isinstance(part, (tuple, list, dict)):
        items = part.items() if isinstance(part, dict) else enumerate(part)
        for key, item in items:
            yield from _tensors(item, (*path, key))
