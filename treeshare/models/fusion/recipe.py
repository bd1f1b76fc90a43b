"""What a decoder layer is made of: the operations that it was seen to compute, as few as the kernels need.

Norms, rotary positions and gated activations are found by what they compute, whatever the layer's code calls
them. Anything else stays the operation that it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from treeshare.models.fusion.graph import Unfusable, Weight
from treeshare.models.fusion.program import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from numpy.typing import NDArray

    from treeshare.models.fusion.graph import Graph, Value

NORMS = frozenset({"RMS_NORM", "LAYER_NORM"})
ROTATIONS = frozenset({"ROTATE_HALVES", "ROTATE_PAIRS"})
_ACTIVATIONS = frozenset({"SILU", "GELU", "GELU_TANH", "GELU_NEW", "RELU", "SIGMOID", "TANH"})
GIVEN = frozenset({"hidden", "setup"})
"""Kinds of values that a layer is given."""

_GELU_CUBE, _GELU_FACTOR = 0.044715, 0.7978845608028654


@dataclass(frozen=True)
class Recipe:
    """A layer as operations of the kernels.

    Attributes:
        graph: All values that were seen.
        values: Those that its output is made of, in order.
        dtype: Of its weights and hidden states.
    """

    graph: Graph
    values: list[Value]
    dtype: torch.dtype


def find_recipe(graph: Graph, dtype: torch.dtype) -> Recipe:
    """The recipe of a layer that was traced.

    Raises:
        Unfusable: If it computes what no kernel does.
    """
    finder = _Finder(graph, dtype)
    for step in (
        finder.merge_equals,
        finder.find_norms,
        finder.find_rotations,
        finder.round_at_once,
        finder.find_gelu_new,
        finder.weigh_norms,
        finder.gate_activations,
    ):
        step()
    recipe = Recipe(graph, finder.live(), dtype)
    for value in recipe.values:
        if value.kind in ("MEAN", "RSQRT"):
            raise Unfusable(f"its layers compute {value.kind.lower()} outside of a known norm")
    if sum(value.kind == "attend" for value in recipe.values) != 1:
        raise Unfusable("its layers do not call attention once")
    return recipe


class _Finder:
    """Rewrites a graph in place: a value that completes a pattern becomes the operation that replaces it."""

    def __init__(self, graph: Graph, dtype: torch.dtype) -> None:
        self._graph, self._dtype = graph, dtype

    def live(self) -> list[Value]:
        """The values that the output is made of, in order."""
        wanted = {id(value) for value in self._graph.owners(self._graph.output)}
        for value in reversed(self._graph.values):
            if id(value) in wanted:
                wanted |= {id(part) for part in self._parts(value)}
        return [value for value in self._graph.values if id(value) in wanted]

    def _parts(self, value: Value) -> list[Value]:
        return [part for operand in _arrays(value.operands) for part in self._graph.owners(operand)]

    def _uses(self) -> dict[int, int]:
        """How often a value is an operand, by its identity."""
        uses: dict[int, int] = {}
        values = self.live()
        parts = [part for value in values for part in self._parts(value)]
        for part in (*parts, *self._graph.owners(self._graph.output)):
            uses[id(part)] = uses.get(id(part), 0) + 1
        return uses

    def _whole(self, operand: Any) -> Value | None:  # noqa: ANN401
        """The value whose numbers the operand is, all in order."""
        if not isinstance(operand, np.ndarray) or len(operand) == 0:
            return None
        value = self._graph.owner(int(operand[0]))
        return value if np.array_equal(operand, value.places) else None

    def _spread(self, operand: Any) -> Value | None:  # noqa: ANN401
        """The value each of whose numbers the operand has several times, side by side."""
        if not isinstance(operand, np.ndarray) or len(operand) == 0:
            return None
        value = self._graph.owner(int(operand[0]))
        times, rest = divmod(len(operand), value.width)
        return value if not rest and np.array_equal(operand, np.repeat(value.places, times)) else None

    def merge_equals(self) -> None:
        """Compute once what is computed twice."""
        seen: dict[object, Value] = {}
        moved: dict[int, Value] = {}
        for value in self.live():
            for index, operand in enumerate(value.operands):
                if isinstance(operand, np.ndarray):
                    value.operands[index] = self._moved(operand, moved)
            if value.kind in GIVEN or value.kind in ("attend", "LINEAR", BLOCK):
                continue
            parts = tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in value.operands)
            key = value.kind, parts, value.dtype, value.inner, value.number, value.weight, value.bias
            first = seen.setdefault(key, value)
            if first is not value:
                moved[id(value)] = first
        self._graph.output = self._moved(self._graph.output, moved)

    def _moved(self, places: NDArray[np.int64], moved: dict[int, Value]) -> NDArray[np.int64]:
        for owner in self._graph.owners(places):
            if id(owner) in moved:
                inside = owner.has(places)
                places = np.where(inside, places - owner.base + moved[id(owner)].base, places)
        return places

    def find_norms(self) -> None:
        """``x * rsqrt(mean(x ** 2) + epsilon)``, and the same of ``x - mean(x)``."""
        for value in self._of("MULTIPLY"):
            for x, factor in _both_ways(value.operands):
                found = self._mean_square(self._spread(factor), x)
                if found is None:
                    continue
                mean, epsilon = found
                value.kind, value.operands = "RMS_NORM", [x]
                value.number, value.inner = epsilon, value.width // mean.width
                centred = self._whole(x)
                if centred is not None and centred.kind == "SUBTRACT":
                    source, middle = centred.operands[0], self._spread(centred.operands[1])
                    if (
                        middle is not None
                        and middle.kind == "MEAN"
                        and _same(middle.operands[0], source)
                        and middle.width == mean.width
                    ):
                        value.kind, value.operands = "LAYER_NORM", [source]
                break

    def _mean_square(self, root: Value | None, x: Any) -> tuple[Value, float] | None:  # noqa: ANN401
        """The mean and epsilon where ``root`` is one over the root of the mean of the squares of ``x``."""
        if root is None or root.kind != "RSQRT":
            return None
        total = self._whole(root.operands[0])
        if total is None or total.kind != "ADD" or not isinstance(total.operands[1], float):
            return None
        mean = self._whole(total.operands[0])
        square = self._whole(mean.operands[0]) if mean is not None and mean.kind == "MEAN" else None
        if mean is None or square is None or square.kind != "SQUARE" or not _same(square.operands[0], x):
            return None
        return mean, total.operands[1]

    def find_rotations(self) -> None:
        """``x * cos + turned(x) * sin``, where halves or neighbours are turned."""
        for value in self._of("ADD"):
            products = [self._whole(operand) for operand in value.operands]
            for kept, turned in _both_ways(products):
                if kept is None or turned is None or kept.kind != "MULTIPLY" or turned.kind != "MULTIPLY":
                    continue
                x, cosine = self._hidden_first(kept)
                other, sine = self._hidden_first(turned)
                if cosine is None or sine is None or kept.dtype != turned.dtype:
                    continue
                found = self._turn(x.reshape(-1, value.inner), other.reshape(-1, value.inner))
                tables = [table.reshape(-1, value.inner) for table in (cosine, sine)]
                if found is None or any((table != table[0]).any() for table in tables):
                    continue
                value.kind, flags = found
                value.operands = [x, tables[0][0], tables[1][0]]
                value.flags = flags | ({"ROUND_INNER"} if kept.dtype == self._dtype else set())
                break

    def _hidden_first(self, product: Value) -> tuple[Any, Any]:
        """A product's operands, that of hidden states first; ``(., None)`` where none is a table."""
        for x, table in _both_ways(product.operands):
            if isinstance(x, np.ndarray) and isinstance(table, np.ndarray):
                owners = self._graph.owners(table)
                if {owner.kind for owner in owners} == {"setup"}:
                    return x, table
        return None, None

    def _turn(self, x: NDArray[np.int64], other: NDArray[np.int64]) -> tuple[str, frozenset[str]] | None:
        """How ``other`` is ``x`` turned; heads are rows."""
        negative = np.zeros(other.shape, bool)
        sources = other.copy()
        for owner in self._graph.owners(other.ravel()):
            if owner.kind == "NEGATE":
                inside = owner.has(other)
                negative |= inside
                sources[inside] = owner.operands[0][other[inside] - owner.base]
        width = x.shape[1]
        half = width // 2
        if width % 2:
            return None
        halves, pairs = np.roll(x, -half, axis=1), x.reshape(-1, half, 2)[:, :, ::-1].reshape(x.shape)
        first = np.arange(width) < half
        if np.array_equal(sources, halves) and (negative == first).all():
            return "ROTATE_HALVES", frozenset()
        if np.array_equal(sources, halves) and (negative != first).all():
            return "ROTATE_HALVES", frozenset({"FLIP"})
        if np.array_equal(sources, pairs) and (negative == (np.arange(width) % 2 == 0)).all():
            return "ROTATE_PAIRS", frozenset()
        return None

    def round_at_once(self) -> None:
        """What is computed in float32 and then rounded is rounded when it is stored."""
        uses = self._uses()
        for value in self._of("COPY"):
            source = self._whole(value.operands[0])
            if (
                source is None
                or source.kind in (*GIVEN, "attend", "LINEAR", BLOCK, "COPY")
                or uses[id(source)] > 1
            ):
                continue
            value.kind, value.operands, value.inner = source.kind, source.operands, source.inner
            value.number, value.weight, value.bias = source.number, source.weight, source.bias
            value.flags = source.flags

    def weigh_norms(self) -> None:
        """A norm's weight is a part of it."""
        uses = self._uses()
        for value in self._of("MULTIPLY"):
            for weight, normal in _both_ways(value.operands):
                norm = self._whole(normal)
                if not isinstance(weight, Weight) or norm is None or norm.kind not in NORMS:
                    continue
                if norm.weight or uses[id(norm)] > 1 or weight.parameter.tensor.numel() != norm.inner:
                    continue
                value.kind, value.operands, value.number, value.inner = (
                    norm.kind,
                    norm.operands,
                    norm.number,
                    norm.inner,
                )
                value.weight = weight
                value.flags = frozenset({"ROUND_INNER"} if norm.dtype == self._dtype else ())
                break

    def gate_activations(self) -> None:
        """An activation times something else is one operation."""
        uses = self._uses()
        for value in self._of("MULTIPLY"):
            for active, other in _both_ways(value.operands):
                function = self._whole(active)
                if function is None or not isinstance(other, np.ndarray) or function.kind not in _ACTIVATIONS:
                    continue
                if uses[id(function)] > 1 or len(function.operands) > 1:
                    continue
                value.kind, value.operands = function.kind, [function.operands[0], other]
                value.flags = frozenset({"ROUND_INNER"} if function.dtype == self._dtype else ())
                break

    def find_gelu_new(self) -> None:
        """``0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))``, step by step."""
        for value in self._of("MULTIPLY"):
            for left, right in _both_ways(value.operands):
                half, one = self._scaled(left, "MULTIPLY", 0.5), self._scaled(right, "ADD", 1.0)
                bent = self._whole(one)
                inner = (
                    self._scaled(bent.operands[0], "MULTIPLY", _GELU_FACTOR)
                    if bent and bent.kind == "TANH"
                    else None
                )
                total = self._whole(inner)
                if half is None or total is None or total.kind != "ADD":
                    continue
                x, product = total.operands
                cube = self._whole(self._scaled(product, "MULTIPLY", _GELU_CUBE))
                if cube is not None and cube.kind == "CUBE" and _same(cube.operands[0], x) and _same(half, x):
                    value.kind, value.operands = "GELU_NEW", [x]
                    break

    def _scaled(self, operand: Any, kind: str, number: float) -> Any:  # noqa: ANN401
        """What the operand is made of by ``kind`` with this number; None where it is not."""
        value = self._whole(operand)
        if value is None or value.kind != kind or number not in _numbers(value.operands):
            return None
        return next((part for part in value.operands if isinstance(part, np.ndarray)), None)

    def _of(self, kind: str) -> Iterable[Value]:
        return [value for value in self.live() if value.kind == kind]


def _arrays(operands: Iterable[Any]) -> list[NDArray[np.int64]]:
    return [operand for operand in operands if isinstance(operand, np.ndarray)]


def _numbers(operands: Iterable[Any]) -> list[float]:
    return [operand for operand in operands if isinstance(operand, float)]


def _same(a: Any, b: Any) -> bool:  # noqa: ANN401
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b)


def _both_ways(operands: list[Any]) -> list[tuple[Any, Any]]:
    if len(operands) != 2:
        return []
    return [(operands[0], operands[1]), (operands[1], operands[0])]
