"""One operation of the kernels on rows of numbers."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import torch

import treeshare.native
from treeshare.native import int8_kernels, kernels, number_of, structs

_HEADER = (Path(treeshare.native.__file__).parent / "structs.h").read_text()
_OTHERS = {"KIND", "name", "OPERATION_KINDS", "LINEAR", "LINEAR_INT8", "QUANTIZE"}
KINDS = sorted(set(re.findall(r"KIND\((\w+)\)", _HEADER)) - _OTHERS)
"""Every kind of operation that is computed row by row, from numbers to numbers."""


def place(buffer, offset=0, group_stride=0):
    return structs.Place(buffer, offset, group_stride)


def run(operations, rows, num_rows, row_numbers=1):
    """Run operations over buffers, which are tensors ``[num_rows or 1, .]``."""
    array = (structs.Operation * len(operations))(*operations)
    dtype = next(tensor.dtype for tensor in rows if tensor.dtype == torch.bfloat16 or tensor is rows[-1])
    buffers = (structs.Buffer * len(rows))(
        *(
            (tensor.data_ptr(), tensor.stride(0) if len(tensor) > 1 else 0, tensor.dtype == torch.float32)
            for tensor in rows
        )
    )
    program = structs.Program(
        ctypes.addressof(array), len(array), ctypes.addressof(buffers), num_rows, row_numbers, None
    )
    program.apply_int8 = ctypes.cast(int8_kernels().treeshare_apply_int8, ctypes.c_void_p).value
    kernels(dtype).treeshare_run(ctypes.byref(program))


def run_operation(
    kind, a, b=None, c=None, *, groups=1, flags=("ROUND",), number=0.0, weight=None, bias=None, in_rows=False
):
    """The result of one operation on whole rows; ``in_rows``: by way of a thread's own memory."""
    num_rows, width = a.shape
    inner = width // groups
    out = torch.full_like(a, torch.nan)
    given = [tensor for tensor in (a, b, c) if tensor is not None]
    none = number_of("NO_BUFFER")
    places = [place(none)] * 3
    for index, tensor in enumerate(given):
        places[index] = place(index, 0, inner if tensor.shape[1] == width else 0)
    linear = structs.Linear(
        *(None if tensor is None else tensor.data_ptr() for tensor in (weight, bias)), 0, 0
    )
    number_of_flags = sum(map(number_of, flags))
    target = place(number_of("ROW_BUFFER") if in_rows else len(given), 0, inner)
    steps = [
        structs.Operation(number_of(kind), number_of_flags, groups, inner, *places, target, number, linear)
    ]
    if in_rows:
        copy = [place(number_of("ROW_BUFFER")), place(none), place(none), place(len(given))]
        steps.append(structs.Operation(number_of("COPY"), 0, 1, width, *copy))
    run(steps, [*given, out], num_rows, width)
    return out
