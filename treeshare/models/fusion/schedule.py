"""The order of a recipe's operations, and how long each value is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from treeshare.models.fusion.graph import Value
from treeshare.models.fusion.places import is_uniform

if TYPE_CHECKING:
    from treeshare.models.fusion.graph import Places
    from treeshare.models.fusion.recipe import Recipe

GATHER = "GATHER"
"""The kind of a value that is a copy of other values' numbers, side by side."""


@dataclass
class Node:
    """An operation in order: the values that it makes, several of joined linear layers.

    Operations of one stage are computed in one go, row by row.
    """

    values: list[Value]
    stage: int = 0

    @property
    def kind(self) -> str:
        """Of its values."""
        return self.values[0].kind


class Schedule:
    """Operations in order.

    Args:
        recipe: A recipe.

    Attributes:
        nodes: The operations; linear layers that share an input are one.
        output: The layer's output.
        last: By a value's identity, the index of the node that reads it last.
        stays: By a value's identity, whether no other stage reads it.
        inside: By a value's identity, the copy in whose memory it is best computed, and where: the copy alone
            reads it.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._graph, self._dtype = recipe.graph, recipe.dtype
        self._end = max(value.base + value.width * recipe.graph.num_rows for value in recipe.graph.values)
        values = self._with_copies(recipe.values)
        self.output = values[-1]
        self.nodes = self._ordered(values)
        self.last: dict[int, int] = {}
        self.stays: dict[int, bool] = {}
        self._find_lives()
        self.inside: dict[int, tuple[Value, Places]] = {}
        self._find_insides()

    def _with_copies(self, values: list[Value]) -> list[Value]:
        """Add a copy where attention, a linear layer or the layer's end needs numbers side by side."""
        result: list[Value] = []
        for value in values:
            if value.kind in ("attend", "LINEAR"):
                is_whole = value.kind == "LINEAR"
                value.operands = [self._dense(operand, is_whole, result) for operand in value.operands]
            result.append(value)
        output = self._dense(self._graph.output, True, result)
        if self._graph.owner(int(output[0])) is not result[-1] or result[-1].kind in ("LINEAR", "attend"):
            self._copied(output, result)
        return result

    def _dense(self, operand: Places, is_whole: bool, values: list[Value]) -> Places:
        """The operand, or a copy of it where its numbers would not lie side by side."""
        owners = self._graph.owners(operand)
        first = owners[0]
        given = {"setup"} if is_whole else {"setup", "hidden"}
        is_one = len(owners) == 1 and first.kind not in given and first.dtype == self._dtype
        if is_one and (not is_whole or len(operand) == first.width) and (np.diff(operand) == 1).all():
            return operand
        return self._copied(operand, values)

    def _copied(self, operand: Places, values: list[Value]) -> Places:
        copy = Value(GATHER, [operand], len(operand), len(operand), self._dtype, base=self._end)
        self._end += copy.width * self._graph.num_rows
        self._graph.values.append(copy)
        values.append(copy)
        return copy.places

    def _ordered(self, values: list[Value]) -> list[Node]:
        """Join linear layers that share an input, at the first one's place; number the stages."""
        nodes: list[Node] = []
        joined: dict[object, Node] = {}
        for value in values:
            if value.kind in ("hidden", "setup"):
                continue
            if value.kind == "attend":
                joined = {}
            if value.kind != "LINEAR":
                nodes.append(Node([value]))
                continue
            key = value.operands[0].tobytes(), value.bias is None, value.flags
            if key in joined:
                joined[key].values.append(value)
            else:
                joined[key] = Node([value])
                nodes.append(joined[key])
        stage, before = 0, "attend"
        for node in nodes:
            stage += node.kind in ("LINEAR", "attend") or before in ("LINEAR", "attend")
            node.stage, before = stage, node.kind
        return nodes

    def _find_lives(self) -> None:
        made = {id(value): node.stage for node in self.nodes for value in node.values}
        for index, node in enumerate(self.nodes):
            for owner in self.read_by(node):
                stays = self.stays.get(id(owner), True) and made.get(id(owner)) == node.stage
                self.stays[id(owner)], self.last[id(owner)] = stays, index
        self.stays[id(self.output)], self.last[id(self.output)] = False, len(self.nodes)

    def read_by(self, node: Node) -> list[Value]:
        """The values that an operation reads."""
        operands = [operand for operand in node.values[0].operands if isinstance(operand, np.ndarray)]
        owners = {id(owner): owner for operand in operands for owner in self._graph.owners(operand)}
        return list(owners.values())

    def _find_insides(self) -> None:
        readers: dict[int, list[Node]] = {}
        for node in self.nodes:
            for owner in self.read_by(node):
                readers.setdefault(id(owner), []).append(node)
        for node in self.nodes:
            for owner in self.read_by(node) if node.kind == GATHER else ():
                operand = node.values[0].operands[0]
                (place,) = np.nonzero(owner.has(operand))
                is_whole = np.array_equal(operand[place], owner.places)
                is_operation = owner.kind not in ("hidden", "setup", "attend", "LINEAR", GATHER)
                if (
                    is_operation
                    and is_whole
                    and len(readers[id(owner)]) == 1
                    and is_uniform(place, owner.inner)
                ):
                    self.inside[id(owner)] = node.values[0], place
