"""Calls of the kernels in codes of 8 bits, for ``driver.cpp``: from numbers to results and back."""

from __future__ import annotations

import itertools

import numpy as np

from tests.native import int8_oracle as oracle
from tests.native.calls import Calls
from treeshare.native import structs
from treeshare.native.int8 import Int8Format

SHAPES = [(6, 1), (64, 16), (90, 33), (192, 50)]
"""Inputs and outputs."""

NUM_ROWS = (1, 2, 3, 4, 5, 6, 7, 13, 37)


def formats():
    for (num_inputs, num_outputs), group in itertools.product(SHAPES, (None, 64)):
        for width in {1, min(64, num_inputs & -num_inputs)}:
            yield Int8Format(num_inputs=num_inputs, group=group, transform=width), num_outputs


def numbers(*shape, seed):
    x = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    x[0] = -1  # codes of -127 alone, where nothing is transformed
    return x


def code_rows(num_inputs):
    return oracle.quantize(numbers(max(NUM_ROWS), num_inputs, seed=4))[0]


def int8_case():
    """Calls of all kernels, by any level."""
    calls = Calls()

    def floats(name, *shape):
        memory = np.full(shape, 7, np.float32)
        return calls.struct(
            structs.Buffer,
            address=calls.result(name, memory) if name else calls.array(memory),
            row_stride=shape[1],
            is_float32=1,
        )

    for number, (format, num_outputs) in enumerate(formats()):
        outputs = -(-num_outputs // 16) * 16
        codes = calls.result(f"codes {number}", np.full(outputs * format.padded, 7, np.int8))
        sums = calls.result(f"sums {number}", np.zeros((format.num_groups, outputs), np.int32))
        layer = calls.struct(
            structs.Int8Linear,
            codes=codes,
            scales=calls.result(f"scales {number}", np.zeros((format.num_groups, outputs), np.float32)),
            sums=sums,
            bias=calls.array(numbers(1, num_outputs, seed=1)[0]),
            num_inputs=format.num_inputs,
            num_outputs=num_outputs,
            group=format.group or format.padded,
            transform=format.transform,
        )
        given, rows = [], []
        for seed, count in ((2, num_outputs), (3, max(NUM_ROWS))):
            x = calls.array(numbers(count, format.num_inputs, seed=seed))
            given.append(calls.struct(structs.Buffer, address=x, row_stride=format.num_inputs, is_float32=1))
            rows.append(floats(None, count, format.row_floats))
            calls.call("quantize_rows", layer, given[-1], rows[-1], count)
        calls.call("pack_int8", layer, rows[0], 0, num_outputs)
        for num_rows in NUM_ROWS:
            out = floats(f"out {number} {num_rows}", num_rows, num_outputs)
            calls.call("linear_int8", layer, rows[1], out, num_rows)
        if format.num_groups == 1:
            for num_rows in NUM_ROWS:
                products = calls.struct(
                    structs.CodeProducts,
                    rows=calls.array(code_rows(format.padded)),
                    panels=codes,
                    panel_sums=sums,
                    sums=calls.result(
                        f"products {number} {num_rows}", np.zeros((num_rows, outputs), np.float32)
                    ),
                    num_rows=num_rows,
                    inputs=format.padded,
                    num_panels=outputs // 16,
                    stride=outputs,
                )
                calls.call("multiply_codes", products)
        ids = calls.array(np.array([num_outputs - 1, 0]))
        calls.call("lookup_int8", layer, ids, floats(f"table {number}", 2, format.num_inputs), 2)
    return calls


def expected():
    """The results, by numpy."""
    found = {}
    for number, (format, num_outputs) in enumerate(formats()):
        kind = {"group": format.group, "transform_width": format.transform}
        weights = oracle.quantize(numbers(num_outputs, format.num_inputs, seed=2), **kind)
        x = oracle.quantize(numbers(max(NUM_ROWS), format.num_inputs, seed=3), **kind)
        out = oracle.multiply(x, weights, numbers(1, num_outputs, seed=1)[0])
        padding = ((0, -num_outputs % 16), (0, 0))
        codes = np.pad(weights[0], padding)
        group = format.group or format.padded
        starts = range(0, format.padded, group)
        found[f"codes {number}"] = codes.reshape(-1, 16, format.padded // 4, 4).transpose(0, 2, 1, 3).ravel()
        found[f"scales {number}"] = np.pad(weights[1], padding).T
        found[f"sums {number}"] = np.stack([codes[:, i : i + group].sum(1, dtype=np.int32) for i in starts])
        found |= {f"out {number} {num_rows}": out[:num_rows] for num_rows in NUM_ROWS}
        if format.num_groups == 1:
            products = code_rows(format.padded).astype(np.float32) @ codes.T.astype(np.float32)
            found |= {f"products {number} {num_rows}": products[:num_rows] for num_rows in NUM_ROWS}
        table = oracle.numbers_of(weights, format.num_inputs, format.transform)
        found[f"table {number}"] = table[[num_outputs - 1, 0]]
    return found
