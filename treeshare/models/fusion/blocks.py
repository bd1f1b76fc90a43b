"""Blocks of a decoder layer that choose by what they compute, such as experts: called as they are.

What lies around a block is a program of the kernels like any layer's. The block itself, a router and its
experts, has its own forward, whose matmuls are the kernels' already (``experts.py``, ``own_code.py``).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from treeshare.models.fusion.graph import Unfusable
from treeshare.models.linear import KernelLinear, RowForward
from treeshare.models.quantization import QuantizedLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor


class Block(NamedTuple):
    """A block of a layer.

    Attributes:
        name: Its name in the layer.
        others: How many values it gives beside the hidden states, which are the first; None: no tuple.
        is_flat: Whether they are ``[T, width]``, not ``[1, T, width]``.
    """

    name: str
    others: int | None
    is_flat: bool

    def result(self, hidden: Tensor) -> Any:  # noqa: ANN401
        """``hidden`` ``[1, T, width]`` as the block gives it; what else it gives is None."""
        shaped = hidden.view(hidden.shape[1:]) if self.is_flat else hidden
        return shaped if self.others is None else (shaped, *[None] * self.others)


class Stub(nn.Module):
    """Stands for a block while the layer around it is judged: an output depends on all of its row's input.

    Args:
        block: What it stands for.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden_states: Tensor) -> Any:  # noqa: ANN401
        """As the block gives it."""
        rows = hidden_states.view(1, -1, hidden_states.shape[-1])
        return self.block.result(0.5 * rows.roll(1, -1) - 0.25 * rows)


def find_block(layer: nn.Module, hidden: Tensor) -> Block | None:
    """The block of a layer that holds all of its matmuls that are no linear layer's; None: it has none.

    Args:
        layer: The layer, whose experts and routers are bound.
        hidden: ``[1, T, width]`` that the block is tried with.

    Raises:
        Unfusable: If no single block holds them, or it takes something else than hidden states.
    """
    names = [name.split(".") for name, module in layer.named_modules() if _is_chosen(module)]
    if not names:
        return None
    shared: list[str] = []
    for parts in zip(*names, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    if len(names) == 1:
        shared = names[0][:-1]
    name = ".".join(shared)
    if not name:
        raise Unfusable("its layers choose experts beside other modules")
    try:
        output = layer.get_submodule(name)(hidden)
    except TypeError as error:
        raise Unfusable(f"its experts take something else than hidden states ({error})") from error
    first = output[0] if isinstance(output, tuple) else output
    if not isinstance(first, torch.Tensor) or first.shape not in (hidden.shape, hidden.shape[1:]):
        raise Unfusable("its experts give something else than hidden states")
    return Block(name, len(output) - 1 if isinstance(output, tuple) else None, first.dim() == 2)


def _is_chosen(module: nn.Module) -> bool:
    """Whether a module is a part of a mixture."""
    forward = vars(module).get("forward")
    is_linear = isinstance(forward, (KernelLinear, QuantizedLinear))
    return isinstance(forward, RowForward) and not is_linear


@contextlib.contextmanager
def replaced(layer: nn.Module, block: Block | None, call: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the block is ``call`` of its hidden states ``[1, T, width]``."""
    if block is None:
        yield
        return
    module = layer.get_submodule(block.name)

    def forward(hidden_states: Tensor) -> Any:  # noqa: ANN401
        return block.result(call(hidden_states))

    module.forward = forward
    try:
        yield
    finally:
        del module.forward
