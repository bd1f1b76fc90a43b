"""Calls of kernels as a file, which ``driver.cpp`` runs on a machine that has no Python."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Place:
    """Where an array lies in the memory that the calls share."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


class Calls:
    """Arrays, structs that hold addresses of them, and calls with both."""

    def __init__(self):
        self._memory = bytearray()
        self._addresses = []
        self._calls = []
        self._results = {}

    def array(self, values):
        """A copy of an array, at its place."""
        values = np.ascontiguousarray(values)
        self._memory += bytes(-len(self._memory) % 64)
        place = Place(len(self._memory), values.shape, values.dtype)
        self._memory += values.tobytes() + bytes(64)  # kernels fetch ahead
        return place

    def result(self, name, values):
        """An array that ``read`` gives back under this name, with its values before the calls."""
        self._results[name] = self.array(values)
        return self._results[name]

    def struct(self, kind, /, **fields):
        """A struct of ``structs.py``; a place becomes its address, what is not given zero.

        ``linear__weight`` is the field ``weight`` of its field ``linear``.
        """
        value = kind()
        places = {name: field for name, field in fields.items() if isinstance(field, Place)}
        for name in fields.keys() - places.keys():
            setattr(value, name, fields[name])
        at = self.array(np.frombuffer(bytes(value), np.uint8))
        for name, place in places.items():
            offset, inner = 0, kind
            for part in name.split("__"):
                offset, inner = offset + getattr(inner, part).offset, dict(inner._fields_)[part]
            self._addresses.append((at.offset + offset, place.offset))
        return at

    def structs(self, rows, **fields):
        """A structured array whose ``fields`` are addresses: an offset in bytes of a place, for each."""
        at = self.array(rows)
        for name, targets in fields.items():
            for i, (place, more) in enumerate(targets):
                field = at.offset + i * rows.itemsize + rows.dtype.fields[name][1]
                self._addresses.append((field, place.offset + more))
        return at

    def call(self, name, *arguments):
        """Call ``treeshare_NAME_LEVEL``; floats are a kernel's floats, all else its whole numbers."""
        whole = [argument for argument in arguments if not isinstance(argument, float)]
        floats = [argument for argument in arguments if isinstance(argument, float)]
        kinds = [int(isinstance(argument, Place)) for argument in whole]
        numbers = [argument.offset if isinstance(argument, Place) else argument for argument in whole]
        self._calls.append((name, kinds, numbers, floats))

    def write(self, path, level):
        """Write the file for the kernels of a level."""
        content = [np.int64(len(self._memory)).tobytes(), self._memory]
        content += [np.int64(len(self._addresses)).tobytes(), np.array(self._addresses, np.int64).tobytes()]
        content.append(np.int64(len(self._calls)).tobytes())
        for name, kinds, numbers, floats in self._calls:
            content.append(f"treeshare_{name}_{level}".encode().ljust(64, b"\0"))
            content += [
                np.resize([*part, *[0] * 8], 8).astype(np.int64).tobytes() for part in (kinds, numbers)
            ]
            content.append(np.array([*floats, 0, 0][:2], np.float32).tobytes())
        path.write_bytes(b"".join(content))

    def read(self, path):
        """The results, by their names."""
        memory = path.read_bytes()
        return {
            name: np.frombuffer(memory, place.dtype, int(np.prod(place.shape)), place.offset).reshape(
                place.shape
            )
            for name, place in self._results.items()
        }

    def run(self, library, level):
        """Run them in this process, by a library that ``ctypes`` has loaded; what ``read`` would give."""
        memory = (ctypes.c_char * (len(self._memory) + 64)).from_buffer_copy(self._memory + bytes(64))
        shift = -ctypes.addressof(memory) % 64
        base = ctypes.addressof(memory) + shift
        ctypes.memmove(base, bytes(self._memory), len(self._memory))
        for at, target in self._addresses:
            ctypes.c_uint64.from_address(base + at).value = base + target
        for name, kinds, numbers, floats in self._calls:
            whole = [
                ctypes.c_int64(number + base * kind) for kind, number in zip(kinds, numbers, strict=True)
            ]
            function = getattr(library, f"treeshare_{name}_{level}")
            function.argtypes = None
            function(*whole, *map(ctypes.c_float, floats))
        after = ctypes.string_at(base, len(self._memory))
        return {
            name: np.frombuffer(after, place.dtype, int(np.prod(place.shape)), place.offset).reshape(
                place.shape
            )
            for name, place in self._results.items()
        }


def to_element(values, element):
    """As the kernels take numbers: bfloat16 are cut, so that they are exact."""
    values = np.asarray(values, np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16) if element == "bfloat16" else values


def to_floats(values):
    return (values.astype(np.uint32) << 16).view(np.float32) if values.dtype == np.uint16 else values


class Case:
    """Calls for an element, with random numbers of a seed."""

    def __init__(self, element, seed=0):
        self.calls, self.element, self.draws = Calls(), element, np.random.default_rng(seed)

    def numbers(self, *shape, scale=1.0):
        return to_element(scale * self.draws.standard_normal(shape), self.element)

    def given(self, *shape, scale=1.0):
        return self.calls.array(self.numbers(*shape, scale=scale))

    def filled(self, name, *shape):
        return self.calls.result(name, np.full(shape, 7, to_element([0], self.element).dtype))
