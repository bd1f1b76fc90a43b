"""Where numbers are: in buffers, in which order, and which memory is free."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Columns = NDArray[np.int64]


class Home(NamedTuple):
    """Where a value is: its column ``c`` is at ``offset + c // width * stride + c % width`` of a buffer."""

    buffer: int
    offset: int
    width: int
    stride: int

    def columns(self, columns: Columns) -> Columns:
        """Where columns are."""
        return self.offset + columns // self.width * self.stride + columns % self.width


class Source(NamedTuple):
    """Numbers in a buffer, in the order in which an operation reads or writes them."""

    buffer: int
    columns: Columns


class Memory:
    """Buffers and a thread's own memory: what is free, and what the values that are alive take."""

    def __init__(self, first: int, own: int) -> None:
        self.widths: list[tuple[int, bool]] = []
        self.num_own = 0
        self._first, self._own = first, own
        self._free: dict[object, list[int]] = {}
        self._users: dict[int, int] = {}
        self._keys: dict[int, object] = {}

    def take_own(self, width: int) -> Home:
        """Memory of a thread."""
        free = self._free.get(("own", width))
        offset = free.pop() if free else self.num_own
        self.num_own = max(self.num_own, offset + width)
        return Home(self._own, offset, width, width)

    def take(self, width: int, is_float32: bool) -> int:
        """A buffer with rows of ``width``."""
        free = self._free.get((width, is_float32))
        if free:
            return free.pop()
        self.widths.append((width, is_float32))
        self._keys[self._first + len(self.widths) - 1] = width, is_float32
        return self._first + len(self.widths) - 1

    def adopt(self, buffer: int, width: int) -> None:
        """Let a buffer that was not taken here be used again."""
        self._keys[buffer] = width, False

    def use(self, home: Home) -> None:
        """A value lives there."""
        self._users[home.buffer] = self._users.get(home.buffer, 0) + 1

    def release(self, home: Home) -> None:
        """A value lives there no longer."""
        if home.buffer == self._own:
            self._free.setdefault(("own", home.width), []).append(home.offset)
            return
        self._users[home.buffer] -= 1
        if not self._users[home.buffer] and home.buffer in self._keys:
            self._free.setdefault(self._keys[home.buffer], []).append(home.buffer)

    def take_this(self, buffer: int) -> bool:
        """Take one buffer, if it is free."""
        free = self._free.get(self._keys.get(buffer), [])
        if buffer not in free:
            return False
        free.remove(buffer)
        return True


def run_length(sources: Sequence[Columns]) -> int:
    """The largest width of groups inside which all of ``sources`` lie side by side."""
    breaks = [place + 1 for columns in sources for place in np.nonzero(np.diff(columns) != 1)[0].tolist()]
    return math.gcd(len(sources[0]), *breaks)


def is_uniform(columns: Columns, width: int) -> bool:
    """Whether groups of ``width`` lie side by side inside, and equally far apart."""
    if len(columns) % width:
        return False
    groups = columns.reshape(-1, width)
    steps = np.diff(groups[:, 0])
    return bool((groups == groups[:, :1] + np.arange(width)).all() and (steps == steps[:1]).all())


def pieces(source: Columns, target: Columns) -> Iterator[tuple[int, int, Columns, Columns]]:
    """Cut a copy into pieces of groups that are equally wide and equally far apart on both sides."""
    cuts = np.nonzero((np.diff(source) != 1) | (np.diff(target) != 1))[0] + 1
    runs = [slice(a, b) for a, b in zip([0, *cuts.tolist()], [*cuts.tolist(), len(source)], strict=True)]
    first = 0
    while first < len(runs):
        last = first + 1
        while last < len(runs) and _fits(source, target, runs[first : last + 1]):
            last += 1
        whole = slice(runs[first].start, runs[last - 1].stop)
        yield last - first, runs[first].stop - runs[first].start, source[whole], target[whole]
        first = last


def _fits(source: Columns, target: Columns, runs: list[slice]) -> bool:
    whole = slice(runs[0].start, runs[-1].stop)
    width = runs[0].stop - runs[0].start
    return is_uniform(source[whole], width) and is_uniform(target[whole], width)
