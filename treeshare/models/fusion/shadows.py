"""What is known of the tensors that a layer makes: which numbers of which values they are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from treeshare.models.fusion.graph import Graph, Held, Setup, Unfusable, Value, Weight

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Rows:
    """What is known of a tensor with numbers of rows: their places; how it is prepared, where it is."""

    places: Tensor
    setup: Setup | None = None


@dataclass(frozen=True)
class Constant:
    """What is known of a tensor made of weights alone."""

    setup: Setup
    weight: Weight | None


class Shadows:
    """Knows the tensors of one run of a layer; it holds them, so that their identities stay theirs.

    Args:
        layer: The layer, whose weights are known.
        num_rows: Rows that it runs on.

    Attributes:
        graph: Gets every value that is added.
    """

    def __init__(self, layer: nn.Module, num_rows: int) -> None:
        weights = dict(itertools.chain(layer.named_parameters(), layer.named_buffers()))
        self.graph = Graph(num_rows, {id(tensor): name for name, tensor in weights.items()})
        self._known: dict[int, tuple[Tensor, Rows | Constant]] = {}
        self._end = 0
        for tensor in weights.values():
            self.know(tensor, Constant(Setup(None, (Held(tensor),)), Weight(Held(tensor))))

    def setup(self, func: Any, args: Any, kwargs: Any) -> Setup | None:  # noqa: ANN401
        """How to make a tensor anew of other arguments; None if it depends on hidden states."""

        def convert(leaf: Any) -> Any:  # noqa: ANN401
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return self.meaning(leaf).setup

        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        sizes = [leaf for leaf in leaves if isinstance(leaf, int) and leaf == self.graph.num_rows]
        if sizes or any(self.meaning(tensor).setup is None for tensor in tensors):
            return None
        inputs = _frozen(tree_map(convert, args))
        return Setup(func, inputs, tuple(sorted(_frozen(tree_map(convert, kwargs)).items())))

    def weight(self, tensor: Tensor | None) -> Weight | None:
        """A parameter as an operand.

        Raises:
            Unfusable: If it is none.
        """
        if tensor is None:
            return None
        meaning = self.meaning(tensor)
        if not isinstance(meaning, Constant) or meaning.weight is None:
            raise Unfusable("its layers compute weights")
        return meaning.weight

    def places_of(self, arguments: Any) -> Any:  # noqa: ANN401
        """Arguments, with places instead of tensors."""
        return tree_map(
            lambda leaf: self.rows(leaf).places if isinstance(leaf, torch.Tensor) else leaf, arguments
        )

    def rows(self, tensor: Tensor) -> Rows:
        """The same of a tensor that must have numbers of rows.

        Raises:
            Unfusable: If it has none.
        """
        meaning = self.meaning(tensor)
        if not isinstance(meaning, Rows):
            raise Unfusable("its layers use weights as hidden states")
        return meaning

    def meaning(self, tensor: Tensor) -> Any:  # noqa: ANN401
        """What is known of a tensor: ``Rows`` or ``Constant``.

        Raises:
            Unfusable: If nothing is.
        """
        known = self._known.get(id(tensor))
        if known is not None:
            return known[1]
        if tensor.numel() == 1:  # a number
            return Constant(Setup(None, (Held(tensor),)), None)
        raise Unfusable("its layers use a tensor that is neither a weight nor an argument")

    def know(self, tensor: Tensor, meaning: Rows | Constant) -> None:
        """Note what a tensor is."""
        self._known[id(tensor)] = tensor, meaning

    def add(self, kind: str, operands: list[Any], out: Tensor, axis: int, **attributes: Any) -> None:  # noqa: ANN401
        """A new value, whose rows are along ``axis`` of ``out``."""
        others = out.shape[:axis] + out.shape[axis + 1 :]
        width = others.numel()
        setup = attributes.get("setup") if kind == "setup" else None
        if setup is not None:
            attributes["setup"] = Setup(_by_rows, (setup, axis))
        inner = others[-1] if others else 1
        value = Value(kind, operands, width, inner, out.dtype, base=self._end, **attributes)
        places = torch.arange(self._end, self._end + out.numel()).view(-1, *others).movedim(0, axis)
        self._end += out.numel()
        self.graph.values.append(value)
        self.know(out, Rows(places, setup))


def _by_rows(tensor: Tensor, axis: int) -> Tensor:
    """``[T, width]``, where rows are along ``axis``."""
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def _frozen(tree: Any) -> Any:  # noqa: ANN401
    """Lists as tuples, so that it can be a key."""
    if isinstance(tree, (list, tuple)):
        return tuple(_frozen(part) for part in tree)
    if isinstance(tree, dict):
        return {key: _frozen(part) for key, part in tree.items()}
    return tree
