"""The kernels' structs, as ``native/structs.h`` declares them: all their mirrors in Python are here.

``mismatch`` compares them with those that a library was built with, field by field.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

_POINTER, _INT, _ADDRESS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64

KEY_BLOCK = 256
"""Keys of a block, which begins at a multiple of it in the prompt."""

PIECE = np.dtype(
    [("keys", np.uint64), ("values", np.uint64), ("padded_tokens", np.int64), ("num_tokens", np.int64)]
)
"""``Piece``: tokens of a segment that lie side by side."""

SLICE = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("first_row", "last_row", "first_piece", "num_pieces"),
            *("num_keys", "first_position", "first_own_token", "causal"),
        )
    ]
)
"""``Slice``: rows of a step and the keys that they see."""


def _fields(kind: Any, *names: str) -> list[tuple[str, Any]]:  # noqa: ANN401
    """Fields of one type, for ``_fields_``."""
    return [(name, kind) for name in names]


class CodeProducts(ctypes.Structure):
    """Rows of codes of 8 bits times panels of codes."""

    _fields_ = (
        *_fields(_POINTER, "rows", "panels", "panel_sums", "sums"),
        *_fields(_INT, "num_rows", "inputs", "num_panels", "stride"),
    )


class TreeStep(ctypes.Structure):
    """One step, for one layer."""

    _fields_ = (
        *_fields(_INT, "num_rows", "num_kv_heads", "group_size", "page_size"),
        *_fields(_INT, "key_width", "value_width", "stored_width", "num_slices"),
        *_fields(_POINTER, "slices", "pieces", "page_indptr", "pages", "private_tokens"),
        *_fields(_POINTER, "first_seen", "hidden_tokens", "sinks"),
        ("soft_cap", ctypes.c_double),
        *_fields(_ADDRESS, "pool_keys", "pool_values"),
        *_fields(_POINTER, "nanoseconds", "multiply_codes"),
    )


class Projections(ctypes.Structure):
    """A layer's queries, keys and values."""

    _fields_ = (
        *_fields(_POINTER, "query", "key", "value"),
        *_fields(_INT, "query_stride", "key_stride", "value_stride"),
    )


class Linear(ctypes.Structure):
    """A linear layer."""

    _fields_ = (*_fields(_POINTER, "weight", "bias"), *_fields(_INT, "num_inputs", "num_outputs"))


class Buffer(ctypes.Structure):
    """Rows of numbers."""

    _fields_ = (("address", _ADDRESS), *_fields(_INT, "row_stride", "is_float32"))


class Int8Linear(ctypes.Structure):
    """A linear layer, or an embedding's table, in codes of 8 bits."""

    _fields_ = (
        *_fields(_POINTER, "codes", "scales", "sums", "bias"),
        *_fields(_INT, "num_inputs", "num_outputs", "group", "transform"),
    )


class Place(ctypes.Structure):
    """Where an operand's numbers are in a row."""

    _fields_ = (*_fields(_INT, "buffer", "offset", "group_stride"),)


class Operation(ctypes.Structure):
    """One operation on every row."""

    _fields_ = (
        *_fields(_INT, "kind", "flags", "groups", "width"),
        *_fields(Place, "a", "b", "c", "out"),
        ("number", ctypes.c_double),
        ("linear", Linear),
        ("int8", _POINTER),
    )


class Program(ctypes.Structure):
    """Operations, one after the other."""

    _fields_ = (
        ("operations", _POINTER),
        ("num_operations", _INT),
        ("buffers", _POINTER),
        *_fields(_INT, "num_rows", "row_numbers"),
        *_fields(_POINTER, "nanoseconds", "apply_int8"),
    )


class Experts(ctypes.Structure):
    """A layer's mixture of experts."""

    _fields_ = (
        *_fields(_POINTER, "up", "down", "gate"),
        *_fields(_INT, "gated", "num_experts", "num_rows", "top_k", "takes_turns", "rounds_products"),
        *_fields(_POINTER, "x", "chosen", "weights", "out", "indptr", "places", "gathered", "given"),
    )


class Draws(ctypes.Structure):
    """Tokens to be drawn from rows of logits."""

    _fields_ = (
        *_fields(_INT, "num_rows", "vocab_size", "stride", "is_bfloat16"),
        *_fields(_POINTER, "logits", "rows", "temperatures", "top_k", "top_p", "margins"),
        *_fields(_POINTER, "indptr", "uniforms", "masks", "bias_indptr", "bias_tokens", "bias_values"),
        *_fields(_POINTER, "tokens", "logprobs", "broken"),
    )


STRUCTS: dict[str, Any] = {
    "Piece": PIECE,
    "Slice": SLICE,
    **{
        struct.__name__: struct
        for struct in (
            *(CodeProducts, TreeStep, Projections, Linear, Buffer, Int8Linear),
            *(Place, Operation, Program, Experts, Draws),
        )
    },
}
"""All structs by their names in C++."""


class _Place(NamedTuple):
    """Where a field lies, in bytes."""

    name: str
    offset: int
    size: int


def mismatch(library: Any) -> str | None:  # noqa: ANN401
    """How a library's structs differ from those here; None if they are the same.

    Args:
        library: A loaded library with the functions of ``structs.cpp``.

    Raises:
        AttributeError: If the library has no such functions.
    """
    size_of, offset_of, field_size_of = (
        library.treeshare_struct_size,
        library.treeshare_field_offset,
        library.treeshare_field_size,
    )
    for function in (size_of, offset_of, field_size_of):
        function.argtypes, function.restype = (ctypes.c_char_p,), _INT
    library.treeshare_key_block.restype = _INT
    if library.treeshare_key_block() != KEY_BLOCK:
        return f"blocks have {library.treeshare_key_block()} keys there and {KEY_BLOCK} here"
    for name, struct in STRUCTS.items():
        own = struct.itemsize if isinstance(struct, np.dtype) else ctypes.sizeof(struct)
        built = size_of(name.encode())
        if built != own:
            return f"{name} has {built} bytes there and {own} here"
        for place in _places(struct):
            field = f"{name}.{place.name}".encode()
            found = offset_of(field), field_size_of(field)
            if found != (place.offset, place.size):
                return f"{name}.{place.name} lies elsewhere there, or is of another size"
    return None


def _places(struct: Any) -> Iterator[_Place]:  # noqa: ANN401
    """Where the fields of a ctypes or numpy struct lie."""
    if isinstance(struct, np.dtype):
        for name, place in (struct.fields or {}).items():
            yield _Place(name, place[1], place[0].itemsize)
    else:
        for name, _ in struct._fields_:
            descriptor = getattr(struct, name)
            yield _Place(name, descriptor.offset, descriptor.size)
