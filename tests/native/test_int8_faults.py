"""Faults in the sources of the kernels in codes of 8 bits: each is seen by calls that check all levels."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import treeshare.native
from tests.native.int8_calls import expected, int8_case
from treeshare.native import library

SOURCES = Path(treeshare.native.__file__).parent
CODES = library.int8_codes() if library._load().library else ()

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")]


class Fault(NamedTuple):
    """In the sources of some kernels: what is replaced, by what, and in which results it must show."""

    code: str
    file: str
    old: str
    new: str
    seen: set[str]


FAULTS = {
    "a block that is not transformed": Fault(
        "avx2",
        "int8.h",
        "i = 0; i < count; i += UNIT) mix",
        "i = UNIT; i < count; i += UNIT) mix",
        {"codes", "table"},
    ),
    "a difference the wrong way round": Fault(
        "avx2", "int8.h", "x[1] = sub(a, x[1]);", "x[1] = sub(x[1], a);", {"codes", "table"}
    ),
    "codes that are cut instead of rounded": Fault(
        "portable",
        "int8.h",
        "round_whole(mul(load(numbers + i), factor))",
        "mul(load(numbers + i), factor)",
        {"codes"},
    ),
    "a scale of another group": Fault(
        "avx2", "int8_linear.h", "+ part.group * work.shape.outputs + output);", "+ output);", {"out"}
    ),
    "a row's scale of another group": Fault(
        "avx2", "int8_linear.h", "(row)[part.group]", "(row)[0]", {"out"}
    ),
    "totals that are forgotten": Fault(
        "avx2", "int8_linear.h", "is_first = part.group == 0", "is_first = true", {"out"}
    ),
    "a sum of weights": Fault("avx2", "int8_weights.h", "+ output] = sum;", "+ output] = sum + 1;", {"sums"}),
    "the first half of two words": Fault(
        "avx2", "int8_pairs256.h", "(halves[v], halves[v + 1])", "(halves[v], halves[v])", {"out"}
    ),
    "the second half missing": Fault(
        "avx512f", "int8_pairs512.h", "halves[0], odd", "halves[0], even", {"out"}
    ),
    "no correction of 128": Fault("avx512vnni", "int8_vnni.h", "16 * j), 7)", "16 * j), 31)", {"out"}),
    "a correction of 64": Fault("avx512vnni", "int8_vnni.h", "16 * j), 7)", "16 * j), 6)", {"out"}),
    "codes with their sign": Fault("avx512vnni", "int8_vnni.h", "code ^ 0x80", "code", {"out"}),
    "the wrong tile of rows": Fault("amx", "int8_tiles.h", "x + TILE, BYTES", "x, BYTES", {"out"}),
    "the wrong panel": Fault(
        "amx", "int8_tiles.h", "weights + panel_bytes, BYTES", "weights, BYTES", {"out"}
    ),
    "a row in the place of another": Fault(
        "amx", "int8_tiles.h", "tile += m * BYTES", "tile += m / 2 * BYTES", {"out"}
    ),
}


def build(code, folder, fault=None):
    for path in SOURCES.glob("*.h"):
        text = path.read_text()
        if fault is not None and path.name == fault.file:
            assert fault.old in text
            text = text.replace(fault.old, fault.new)
        (folder / path.name).write_text(text)
    name = f"kernels_{code}_int8.cpp"
    shutil.copy(SOURCES / name, folder)
    words = [
        "g++",
        "-O1",
        "-w",
        "-fPIC",
        "-fopenmp",
        "-ffp-contract=off",
        "-shared",
        name,
        "-o",
        "kernels.so",
    ]
    subprocess.run(words, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


def differing(built, code):
    """The kinds of results that are not numpy's."""
    got, wanted = int8_case().run(built, code), expected()
    assert got.keys() == wanted.keys()
    return {
        name.split()[0]
        for name, values in wanted.items()
        if got[name].tobytes() != np.ascontiguousarray(values).tobytes()
    }


@pytest.mark.parametrize("code", CODES)
def test_the_sources_as_they_are(code, tmp_path):
    assert differing(build(code, tmp_path), code) == set()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_source_is_seen(name, tmp_path):
    fault = FAULTS[name]
    if fault.code not in CODES:
        pytest.skip(f"no {fault.code} on this CPU")
    assert fault.seen <= differing(build(fault.code, tmp_path, fault), fault.code)
