"""What layers make of a step's arguments alone, such as rotary tables: computed once a step, for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from treeshare.models.fusion.graph import Held, Setup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from treeshare.models.fusion.graph import Path
    from treeshare.models.fusion.program import Table

_MAX_TABLES = 64
"""Tables that are kept; a step has a few."""


class StepTables:
    """Keeps tables as long as the tensors that they were made of are the same objects.

    Args:
        dtype: Of hidden states; a table has it or float32.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._numbers: dict[Table, int] = {}
        self._paths: list[tuple[Path, ...] | None] = []
        self._kept: dict[tuple[int, ...], tuple[Tensor, list[Tensor]]] = {}

    def number(self, table: Table) -> int:
        """A number for a table; equal tables have the same."""
        if table not in self._numbers:
            self._numbers[table] = len(self._numbers)
            leaves = list(_leaves(table.source))
            # Weights may change in place, so what is made of them is made anew.
            is_weight = any(isinstance(leaf, Held) for leaf in leaves)
            self._paths.append(None if is_weight else tuple(leaves))
        return self._numbers[table]

    def get(self, number: int, table: Table, args: Any, kwargs: Any) -> Tensor:  # noqa: ANN401
        """The table of this step: ``[T, width]``, or ``[1, width]`` where all rows have the same numbers."""
        paths = self._paths[number]
        if paths is None:
            return self._make(table, args, kwargs)
        sources = [lookup(path, args, kwargs) for path in paths]
        key = (number, *map(id, sources))
        if key not in self._kept:
            if len(self._kept) >= _MAX_TABLES:
                self._kept.clear()
            self._kept[key] = self._make(table, args, kwargs), sources
        return self._kept[key][0]

    def _make(self, table: Table, args: Any, kwargs: Any) -> Tensor:  # noqa: ANN401
        rows: Tensor = _evaluate(table.source, args, kwargs)
        if table.columns is not None:
            rows = rows[:, list(table.columns)]
        return rows.to(
            rows.dtype if rows.dtype in (self._dtype, torch.float32) else torch.float32
        ).contiguous()


def lookup(path: Path, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
    """The argument of a forward at ``path``."""
    first, *rest = path
    found = args[first] if isinstance(first, int) else kwargs[first]
    for key in rest:
        found = found[key]
    return found


def _leaves(part: Any) -> Iterator[Any]:  # noqa: ANN401
    """Paths and weights that a setup is made of."""
    if isinstance(part, Setup):
        if part.function is None:
            yield part.inputs[0]
        else:
            yield from _leaves(part.inputs)
            yield from _leaves(tuple(value for _, value in part.options))
    elif isinstance(part, tuple):
        for item in part:
            yield from _leaves(item)


def _evaluate(part: Any, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
    """Compute a setup, or what it is made of."""
    if isinstance(part, tuple):
        return tuple(_evaluate(item, args, kwargs) for item in part)
    if not isinstance(part, Setup):
        return part
    if part.function is None:
        source = part.inputs[0]
        return source.tensor if isinstance(source, Held) else lookup(source, args, kwargs)
    inputs = _evaluate(part.inputs, args, kwargs)
    return part.function(*inputs, **{key: _evaluate(value, args, kwargs) for key, value in part.options})
