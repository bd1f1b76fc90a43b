"""Compiles a recipe to a program: where each value is, and the operations that make it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from treeshare.models.fusion.graph import Setup, Unfusable, Value, Weight
from treeshare.models.fusion.places import Home, Memory, Source, is_uniform, pieces, run_length
from treeshare.models.fusion.program import (
    ATTENDED,
    BLOCK,
    FIRST_TABLE,
    HIDDEN,
    MATMULS,
    Called,
    Heads,
    Linears,
    Program,
    Step,
    Table,
)
from treeshare.models.fusion.recipe import NORMS, ROTATIONS
from treeshare.models.fusion.schedule import GATHER, Schedule
from treeshare.native import number_of, structs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from treeshare.models.fusion.places import Columns
    from treeshare.models.fusion.recipe import Recipe
    from treeshare.models.fusion.schedule import Node
    from treeshare.models.quantization import Int8Weights

_COMMUTE = frozenset({"ADD", "MULTIPLY", "MINIMUM", "MAXIMUM"})

_MAX_PIECES = 64
"""Copies that one operand may need; a recipe that needs more is not worth it."""


def compile_recipe(recipe: Recipe, codes: Mapping[int, Int8Weights]) -> Program:
    """The program of a recipe.

    Args:
        recipe: A recipe.
        codes: Int8 weights, by the identities of their parameters; other weights are floats.

    Raises:
        Unfusable: If the kernels cannot read what it reads.
    """
    return _Compiler(recipe, codes).compile()


class _Compiler:
    """Compiles one recipe."""

    def __init__(self, recipe: Recipe, codes: Mapping[int, Int8Weights]) -> None:
        self._graph, self._dtype = recipe.graph, recipe.dtype
        self._own = number_of("ROW_BUFFER")
        self._plan = Schedule(recipe, codes)
        self._tables: dict[Table, int] = {}
        self._homes: dict[int, Home] = {}
        num_tables = len({table for node in self._plan.nodes for table in self._tables_of(node)})
        self._memory = Memory(FIRST_TABLE + num_tables, self._own)

    def compile(self) -> Program:
        """The program."""
        attend = next(node.values[0] for node in self._plan.nodes if node.kind == "attend")
        program = self._program = Program(attend.setup)
        self._steps = program.before
        hidden = next(value for value in self._graph.values if value.kind == "hidden")
        self._memory.adopt(HIDDEN, hidden.width)
        self._given = self._settle(hidden, Home(HIDDEN, 0, hidden.width, hidden.width))
        self._memory.use(self._given)  # until attention: its inputs are at addresses of their own
        self._settle(attend, Home(ATTENDED, 0, attend.width, attend.width))
        for index, node in enumerate(self._plan.nodes):
            self._emit(index, node)
        program.tables = list(self._tables)
        program.buffers, program.row_numbers = self._memory.widths, max(self._memory.num_own, 1)
        return program

    def _settle(self, value: Value, home: Home) -> Home:
        self._homes[id(value)] = home
        if home.buffer != self._own:
            self._memory.use(home)
        return home

    def _make_home(self, value: Value) -> Home:
        """Where a new value goes."""
        if id(value) in self._homes:
            return self._homes[id(value)]
        if id(value) in self._plan.inside:
            copy, place = self._plan.inside[id(value)]
            whole = self._make_home(copy)
            stride = int(place[value.inner] - place[0]) if len(place) > value.inner else value.inner
            self._homes[id(value)] = Home(whole.buffer, whole.offset + int(place[0]), value.inner, stride)
            return self._homes[id(value)]
        if self._plan.stays[id(value)]:
            return self._settle(value, self._memory.take_own(value.width))
        buffer = HIDDEN
        if value is not self._plan.output or not self._memory.take_this(HIDDEN):
            buffer = self._memory.take(value.width, value.dtype != self._dtype)
        return self._settle(value, Home(buffer, 0, value.width, value.width))

    def _sources(self, operand: Any) -> list[tuple[Source, Columns]]:  # noqa: ANN401
        """Where an operand's numbers are, by buffers, and which of its numbers those are."""
        if isinstance(operand, Setup):
            return [(Source(self._table(Table(operand, None)), np.arange(0)), np.arange(0))]
        found = []
        for owner in self._graph.owners(operand):
            (place,) = np.nonzero(owner.has(operand))
            columns = operand[place] - owner.base
            if owner.kind == "setup":
                number = self._table(_table(owner, columns))
                found.append((Source(number, np.arange(len(columns))), place))
            else:
                home = self._homes[id(owner)]
                found.append((Source(home.buffer, home.columns(columns)), place))
        buffers = {source.buffer for source, _ in found}
        if len(found) > 1 and len(buffers) == 1:  # parts of joined layers
            columns = np.zeros(len(operand), np.int64)
            for source, place in found:
                columns[place] = source.columns
            return [(Source(buffers.pop(), columns), np.arange(len(operand)))]
        return found

    def _table(self, table: Table) -> int:
        return self._tables.setdefault(table, FIRST_TABLE + len(self._tables))

    def _tables_of(self, node: Node) -> Iterator[Table]:
        for operand in node.values[0].operands:
            if isinstance(operand, Setup):
                yield Table(operand, None)
            for owner in self._graph.owners(operand) if isinstance(operand, np.ndarray) else ():
                if owner.kind == "setup":
                    yield _table(owner, operand[owner.has(operand)] - owner.base)

    def _emit(self, index: int, node: Node) -> None:
        value = node.values[0]
        dying = [owner for owner in self._plan.read_by(node) if self._plan.last[id(owner)] == index]
        if node.kind == "attend":
            for operand, num_heads in zip(value.operands, value.setup.heads, strict=True):
                ((source, _),) = self._sources(operand)
                self._program.heads.append(Heads(source.buffer, int(source.columns[0]), num_heads))
            self._steps = self._program.after
            self._memory.release(self._given)
        elif node.kind in MATMULS:
            self._linear(node)
        elif node.kind == BLOCK:
            self._call(value)
        elif node.kind == "QUANTIZE":
            self._quantize(value)
        elif node.kind == GATHER:
            self._collect(value)
        else:
            dying = self._row_operation(value, dying)
        for owner in dying:
            self._forget(owner)

    def _forget(self, owner: Value) -> None:
        if owner.kind != "setup" and id(owner) not in self._plan.inside:
            self._memory.release(self._homes[id(owner)])

    def _linear(self, node: Node) -> None:
        width = sum(value.width for value in node.values)
        ((source, _),) = self._sources(node.values[0].operands[0])
        buffer, offset = self._memory.take(width, False), 0
        for value in node.values:
            self._settle(value, Home(buffer, offset, value.width, value.width))
            offset += value.width
        operation = _operation(node.kind, frozenset(), 1, width)
        operation.a, operation.out = _place(source, 1, width), structs.Place(buffer, 0, 0)
        weights = tuple(value.weight.parameter.tensor for value in node.values if value.weight)
        if node.kind == "LINEAR_INT8":
            self._steps.append(Step(operation, coded=weights))
            return
        biases = tuple(value.bias and value.bias.parameter.tensor for value in node.values)
        is_transposed = "transposed" in node.values[0].flags
        self._steps.append(Step(operation, Linears(weights, biases, is_transposed)))

    def _call(self, value: Value) -> None:
        """A block, whose input and output are whole rows."""
        ((source, _),) = self._sources(value.operands[0])
        home = self._settle(value, Home(self._memory.take(value.width, False), 0, value.width, value.width))
        operation = _operation("COPY", frozenset(), 1, value.width)
        self._steps.append(Step(operation, called=Called(value.setup, source.buffer, home.buffer)))

    def _quantize(self, value: Value) -> None:
        """A row's codes, of numbers that lie side by side."""
        (source,), borrowed = self._read(value, value.operands)
        home, width = self._make_home(value), len(value.operands[0])
        operation = _operation(value.kind, frozenset(), 1, width)
        assert source is not None
        assert value.weight is not None
        operation.a, operation.out = _place(source, 1, width), structs.Place(home.buffer, home.offset, 0)
        self._steps.append(Step(operation, coded=(value.weight.parameter.tensor,)))
        for own in borrowed:
            self._memory.release(own)

    def _collect(self, value: Value) -> None:
        """Copy what is not yet there."""
        home = self._make_home(value)
        operand = value.operands[0]
        inside = np.zeros(len(operand), bool)
        for owner in self._graph.owners(operand):
            if id(owner) in self._plan.inside:
                inside |= owner.has(operand)
        (missing,) = np.nonzero(~inside)
        if len(missing):
            self._copy(operand[missing], Source(home.buffer, home.columns(missing)), value.dtype)

    def _copy(self, operand: Columns, to: Source, dtype: torch.dtype) -> None:
        num_steps = len(self._steps)
        for source, place in self._sources(operand):
            for groups, width, a, out in pieces(source.columns, to.columns[place]):
                operation = _operation("COPY", self._rounding(dtype), groups, width)
                operation.a = _place(Source(source.buffer, a), groups, width)
                operation.out = _place(Source(to.buffer, out), groups, width)
                self._steps.append(Step(operation))
        if len(self._steps) - num_steps > _MAX_PIECES:
            raise Unfusable("its layers scatter their heads")

    def _row_operation(self, value: Value, dying: list[Value]) -> list[Value]:
        """Returns which of the values that are read last here are still to be forgotten."""
        operands = list(value.operands)
        if value.kind in _COMMUTE and not isinstance(operands[0], np.ndarray):
            operands.reverse()
        sources, borrowed = self._read(value, operands)
        everything = np.arange(value.width)
        early = [owner for owner in dying if self._is_read_in_place(owner, sources, everything)]
        if id(value) not in self._plan.inside:
            for owner in early:
                self._forget(owner)
            dying = [owner for owner in dying if owner not in early]
        home = self._make_home(value)
        target = Source(home.buffer, home.columns(everything))
        self._write(value, operands, sources, target)
        for own in borrowed:
            self._memory.release(own)
        if value is self._plan.output and home.buffer != HIDDEN:
            self._copy(value.places, Source(HIDDEN, everything), value.dtype)
        return dying

    def _read(self, value: Value, operands: list[Any]) -> tuple[list[Source | None], list[Home]]:
        """Where operands are; copied to memory that is borrowed where they do not lie side by side."""
        sources: list[Source | None] = []
        borrowed = []
        for operand in operands:
            if isinstance(operand, (Weight, float)):
                sources.append(None)
                continue
            found = self._sources(operand)
            source = found[0][0]
            if isinstance(operand, Setup):
                source = Source(source.buffer, np.arange(value.width))
            elif len(found) > 1 or not _is_readable(value, source.columns):
                home = self._memory.take_own(len(operand))
                borrowed.append(home)
                source = Source(home.buffer, home.columns(np.arange(len(operand))))
                self._copy(operand, source, torch.float32)
            sources.append(source)
        return sources, borrowed

    def _is_read_in_place(self, owner: Value, sources: list[Source | None], everything: Columns) -> bool:
        """Whether a value that is read last here may be overwritten as it is read."""
        home = self._homes.get(id(owner))
        if home is None or id(owner) in self._plan.inside or owner.width != len(everything):
            return False
        own = home.columns(everything)
        mine = [
            s for s in sources if s is not None and s.buffer == home.buffer and np.isin(s.columns, own).any()
        ]
        return all(np.array_equal(source.columns, own) for source in mine) and bool(mine)

    def _write(self, value: Value, operands: list[Any], sources: list[Source | None], target: Source) -> None:
        is_grouped = value.kind in NORMS or value.kind in ROTATIONS
        weight = next((operand for operand in operands if isinstance(operand, Weight)), value.weight)
        read = [
            source.columns for source in sources if source is not None and len(source.columns) == value.width
        ]
        width = value.inner if is_grouped or weight is not None else run_length([*read, target.columns])
        groups = value.width // width
        if not all(is_uniform(columns, width) for columns in (*read, target.columns)):
            raise Unfusable("its layers scatter their heads")
        flags = value.flags | self._rounding(value.dtype)
        if weight is not None and weight.plus_one:
            flags |= {"PLUS_ONE"}
        operation = _operation(value.kind, flags, groups, width)
        for name, source in zip("abc", sources, strict=False):
            if source is not None:
                setattr(operation, name, _place(source, groups, width))
        operation.out = _place(target, groups, width)
        operation.number = next((operand for operand in operands if isinstance(operand, float)), value.number)
        self._steps.append(
            Step(
                operation,
                weight=weight and weight.parameter.tensor,
                bias=value.bias and value.bias.parameter.tensor,
            )
        )

    def _rounding(self, dtype: torch.dtype) -> frozenset[str]:
        return frozenset({"ROUND"} if dtype == self._dtype else ())


def _is_readable(value: Value, columns: Columns) -> bool:
    """Whether groups of the operation's width can be read as they are."""
    if value.kind == "QUANTIZE" or (value.kind in ROTATIONS and len(columns) == value.inner):
        return bool((np.diff(columns) == 1).all())
    if value.kind in NORMS or value.kind in ROTATIONS or any(isinstance(o, Weight) for o in value.operands):
        return is_uniform(columns, value.inner)
    return is_uniform(columns, run_length([columns]))


def _operation(kind: str, flags: frozenset[str], groups: int, width: int) -> structs.Operation:
    """An operation whose operands are still to be named."""
    nothing = [structs.Place(number_of("NO_BUFFER"), 0, 0) for _ in range(4)]
    return structs.Operation(number_of(kind), sum(map(number_of, flags)), groups, width, *nothing)


def _place(source: Source, groups: int, width: int) -> structs.Place:
    """Where an operand's numbers are in a row."""
    columns = source.columns
    stride = int(columns[width] - columns[0]) if groups > 1 and len(columns) > width else 0
    return structs.Place(source.buffer, int(columns[0]), stride)


def _table(owner: Value, columns: Columns) -> Table:
    """Columns of a prepared value."""
    is_whole = np.array_equal(columns, np.arange(owner.width))
    return Table(owner.setup, None if is_whole else tuple(columns.tolist()))
