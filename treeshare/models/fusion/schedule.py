"""The order of a recipe's operations, and how long each value is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from treeshare.models.fusion.graph import Value
from treeshare.models.fusion.places import is_uniform
from treeshare.models.fusion.program import BLOCK, MATMULS, STAGES
from treeshare.models.quantization import can_join

if TYPE_CHECKING:
    from collections.abc import Mapping

    from treeshare.models.fusion.graph import Places
    from treeshare.models.fusion.recipe import Recipe
    from treeshare.models.quantization import Int8Weights

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
        codes: Int8 weights, by the identities of their parameters.

    Attributes:
        nodes: The operations; linear layers that share an input are one.
        output: The layer's output.
        last: By a value's identity, the index of the node that reads it last.
        stays: By a value's identity, whether no other stage reads it.
        inside: By a value's identity, the copy in whose memory it is best computed, and where: the copy alone
            reads it.
    """

    def __init__(self, recipe: Recipe, codes: Mapping[int, Int8Weights]) -> None:
        self._graph, self._dtype, self._codes = recipe.graph, recipe.dtype, codes
        self._quantized: dict[object, Value] = {}
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
            if value.kind == "LINEAR" and self._codes_of(value):
                value.kind, value.operands = "LINEAR_INT8", [self._quantize(value, result)]
            elif value.kind in ("attend", "LINEAR", BLOCK):
                is_whole = value.kind != "attend"
                value.operands = [self._dense(operand, is_whole, result) for operand in value.operands]
            result.append(value)
        output = self._dense(self._graph.output, True, result)
        if self._graph.owner(int(output[0])) is not result[-1] or result[-1].kind in {*STAGES, "attend"}:
            self._copied(output, result)
        return result

    def _codes_of(self, value: Value) -> Int8Weights | None:
        """The int8 weights of a linear layer; None if it has others."""
        return None if value.weight is None else self._codes.get(id(value.weight.parameter.tensor))

    def _quantize(self, value: Value, values: list[Value]) -> Places:
        """The codes of a linear layer's input; made once for all layers that read it."""
        codes, operand = self._codes_of(value), value.operands[0]
        assert codes is not None
        key = operand.tobytes(), codes.format
        if key not in self._quantized:
            width = codes.format.row_floats
            self._quantized[key] = self._added(
                Value("QUANTIZE", [operand], width, width, torch.float32, weight=value.weight), values
            )
        return self._quantized[key].places

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
        copy = Value(GATHER, [operand], len(operand), len(operand), self._dtype)
        return self._added(copy, values).places

    def _added(self, value: Value, values: list[Value]) -> Value:
        """A new value, which gets its places."""
        value.base = self._end
        self._end += value.width * self._graph.num_rows
        self._graph.values.append(value)
        values.append(value)
        return value

    def _ordered(self, values: list[Value]) -> list[Node]:
        """Join linear layers that share an input, at the first one's place; number the stages."""
        nodes: list[Node] = []
        joined: dict[object, Node] = {}
        for value in values:
            if value.kind in ("hidden", "setup"):
                continue
            if value.kind == "attend":
                joined = {}
            if value.kind not in MATMULS:
                nodes.append(Node([value]))
                continue
            key = self._join_key(value)
            if key in joined:
                joined[key].values.append(value)
            else:
                joined[key] = Node([value])
                nodes.append(joined[key])
        stage, before = 0, "attend"
        for node in nodes:
            stage += node.kind in (*STAGES, "attend") or before in (*STAGES, "attend")
            node.stage, before = stage, node.kind
        return nodes

    def _join_key(self, value: Value) -> object:
        """Linear layers with equal keys can be one."""
        codes, operand = self._codes_of(value), value.operands[0].tobytes()
        if codes is None:
            return operand, value.bias is None, value.flags
        return (operand, "codes") if can_join([codes]) else (operand, id(value))

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
                is_operation = owner.kind not in ("hidden", "setup", "attend", *STAGES, "QUANTIZE", GATHER)
                if (
                    is_operation
                    and is_whole
                    and len(readers[id(owner)]) == 1
                    and is_uniform(place, owner.inner)
                ):
                    self.inside[id(owner)] = node.values[0], place
