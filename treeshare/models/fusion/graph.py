"""The graph of what a layer computes: values, and of which other values' numbers each is made.

Every number that a layer computes for its rows has a place, an integer; those of a value are consecutive,
row by row.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.attention import AttentionSpec

    Places = NDArray[np.int64]

Path = tuple[Any, ...]
"""Where an argument of a forward is: its place or keyword, then places inside it."""


class Unfusable(Exception):
    """A layer that no recipe describes; its text says why."""


class Held:
    """A tensor that is compared by identity."""

    def __init__(self, tensor: Any) -> None:  # noqa: ANN401
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and other.tensor is self.tensor

    def __hash__(self) -> int:
        return id(self.tensor)


@dataclass(frozen=True)
class Setup:
    """A tensor that depends on a step's arguments and the weights alone, not on hidden states.

    Attributes:
        function: What made it of ``inputs``; None for an argument of the forward, or a weight, itself.
        inputs: Of ``function``, with ``Setup`` in the place of tensors; or ``(path,)``; or ``(weight,)``.
        options: Keywords of ``function``.
    """

    function: Any
    inputs: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(eq=False)
class Value:
    """Numbers that the layer computes, ``width`` in each row.

    Attributes:
        kind: ``hidden``, ``setup``, ``attend``, or the operation that makes it, by its kernel's name.
        operands: What it is made of: the places of numbers of other values in row 0, weights and numbers.
        width: Numbers in a row.
        inner: Size of the last dimension, such as the width of a head.
        dtype: As which its numbers are stored.
        number: An epsilon, a factor or an exponent.
        weight: Of a linear layer or a norm; ``bias`` likewise.
        flags: What else the operation is told.
        setup: For a ``setup``.
        shape: For ``attend``: heads and their width.
        base: The place of its first number; row ``t`` begins at ``base + t * width``.
    """

    kind: str
    operands: list[Any]
    width: int
    inner: int
    dtype: torch.dtype
    number: float = 0.0
    weight: Weight | None = None
    bias: Weight | None = None
    flags: frozenset[str] = frozenset()
    setup: Any = None
    base: int = 0

    def has(self, places: Places) -> NDArray[np.bool_]:
        """Which of ``places`` are numbers of its row 0."""
        return (places >= self.base) & (places < self.base + self.width)

    @property
    def places(self) -> Places:
        """Those of its row 0."""
        return np.arange(self.base, self.base + self.width)


@dataclass(frozen=True)
class Weight:
    """A parameter as an operand; ``plus_one``: 1 is added to it, in float32."""

    parameter: Held
    plus_one: bool = False


@dataclass(frozen=True)
class Attend:
    """A call of attention: its operands are queries, keys and values.

    Attributes:
        spec: What the layer's code asks for.
        heads: Of queries, keys and values.
        widths: Numbers of a head of each.
        sinks: The parameter with a score of each query head to which no value belongs, or None.
    """

    spec: AttentionSpec
    heads: tuple[int, ...]
    widths: tuple[int, ...]
    sinks: Tensor | None = None


@dataclass
class Graph:
    """A layer's values in the order in which it computes them.

    Attributes:
        values: All of them.
        output: The places of the layer's output.
        num_rows: Rows that it ran on.
        names: Of the layer's weights, by identity.
    """

    num_rows: int
    names: dict[int, str]
    values: list[Value] = field(default_factory=list)
    output: Places = field(default_factory=lambda: np.zeros(0, np.int64))

    def owner(self, place: int) -> Value:
        """The value that has a place."""
        return self.values[bisect.bisect_right(self.values, place, key=lambda value: value.base) - 1]

    def owners(self, places: Places) -> list[Value]:
        """The values that have any of ``places``, in order."""
        first, last = self.owner(int(places.min())), self.owner(int(places.max()))
        if first is last:
            return [first]
        bases = np.array([value.base for value in self.values])
        return [self.values[i] for i in np.unique(np.searchsorted(bases, places, side="right") - 1)]

    def key(self) -> object:
        """Layers with equal keys compute the same, but for their weights."""
        values = tuple(
            (
                *(value.kind, value.width, value.inner, value.dtype, value.number, value.flags, value.base),
                *map(self._key, (value.weight, value.bias, value.setup, *value.operands)),
            )
            for value in self.values
        )
        return values, self.output.tobytes()

    def _key(self, part: Any) -> object:  # noqa: ANN401
        """The same for an operand or a part of one."""
        if isinstance(part, np.ndarray):
            return part.tobytes()
        if isinstance(part, Held):
            return self.names.get(id(part.tensor), part)
        if isinstance(part, Weight):
            return self._key(part.parameter), part.plus_one
        if isinstance(part, Setup):
            return part.function, self._key(part.inputs), self._key(part.options)
        if isinstance(part, Attend):
            return part.spec, part.heads, part.widths
        return tuple(map(self._key, part)) if isinstance(part, tuple) else part

    def row_axis(self, places: Tensor) -> int:
        """The dimension of ``places`` along which rows change.

        Raises:
            Unfusable: If there is none.
        """
        first = int(places[(0,) * places.dim()])
        for axis, size in enumerate(places.shape):
            if size == self.num_rows:
                second = int(places.select(axis, 1)[(0,) * (places.dim() - 1)])
                if second - first == self.owner(first).width:
                    return axis
        raise Unfusable("its layers mix rows")

    def row_places(self, places: Tensor) -> Places:
        """Places of row 0 of ``[T, ...]``, in order.

        Raises:
            Unfusable: If those of other rows are not the same further on.
        """
        rows = places.reshape(self.num_rows, -1).numpy()
        step = np.zeros(rows.shape[1], np.int64)
        for value in self.owners(rows[0]):
            step[value.has(rows[0])] = value.width
        if not np.array_equal(rows, rows[0] + np.arange(len(rows))[:, None] * step):
            raise Unfusable("its layers mix rows")
        return np.ascontiguousarray(rows[0])
