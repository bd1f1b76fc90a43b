"""Attention in codes of 8 bits with a fault put into its source: the oracle sees it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import treeshare.native
from tests.attention.budget import Forest
from tests.attention.test_coded import BUDGET, FEATURES, error_of
from tests.kernel_levels import PORTABLE_CODES
from treeshare.attention import NativeAttention
from treeshare.native import PORTABLE, library

SOURCES = Path(treeshare.native.__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None or not PORTABLE_CODES, reason="no compiler or kernels"),
]

FAULTS = {
    "none": ("", ""),
    "a key's scale is its neighbour's": ("coded.key_scales + n)", "coded.key_scales + (n ^ 16))"),
    "a query's scale is the first one's": ("query_scales[tile.first + m]", "query_scales[tile.first]"),
    "weights begin at 0": ("MIDDLE * coded.value_sums", "0 * coded.value_sums"),
    "keys are not transformed": ("    transform_columns(x, coded.inputs, coded.mixed);\n", ""),
    "stages are left out": ("width == 2 * distance", "false"),
    "values have no scales": ("mul(weight, load(coded.value_scales + n))", "weight"),
    "a row's weights have the first row's scale": ("(coded.weight_scales[m])", "(coded.weight_scales[0])"),
    "half of a value makes its scale": (
        "token * stride, coded.value_width)",
        "token * stride, coded.value_width / 2)",
    ),
    "a block's last value is nothing": ("token < count ? largest_of", "token + 1 < count ? largest_of"),
    "scores are not capped": ("if (tile.changes) change_scores(work, tile);\n    for", "for"),
    "values from the block before stay": ("broadcast(coded.corrections[m])", "broadcast(1.0f)"),
}
"""In ``coded_attention.h`` and ``attention.h``: what is replaced, by what."""


def build(folder, fault, code):
    old, new = FAULTS[fault]
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("*.so", "*.cpp", "*.py", "__*"))
    headers = {name: (folder / name).read_text() for name in ("coded_attention.h", "attention.h")}
    assert any(old in text for text in headers.values())
    for name, text in headers.items():
        (folder / name).write_text(text.replace(old, new))
    included = (f"{code}.h", "float32.h", "attention.h")
    (folder / "driver.cpp").write_text("".join(f'#include "{name}"\n' for name in included))
    words = ["g++", "-O1", "-w", "-fPIC", "-fopenmp", "-ffp-contract=off", "-shared", "driver.cpp"]
    subprocess.run([*words, "-o", "driver.so"], cwd=folder, check=True)
    kernel = getattr(ctypes.CDLL(str(folder / "driver.so")), f"treeshare_attend_float32_{code}")
    kernel.argtypes, kernel.restype = library._ARGUMENTS["attend"], None
    return kernel


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_source_is_seen(fault, tmp_path):
    kernel = build(tmp_path / "native", fault, PORTABLE_CODES[0])
    backend = NativeAttention(level=PORTABLE, in_codes=True)
    backend._kernels = dict.fromkeys(backend._kernels, SimpleNamespace(treeshare_attend=kernel))
    forest = Forest(FEATURES)
    assert (error_of(forest, forest.attend(backend)) < BUDGET) == (fault == "none")
