"""Attention with a fault put into its source: what the backends are checked by sees it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import treeshare.native
from tests.attention.budget import Case, Forest, assert_within_budget
from tests.kernel_levels import LEVELS
from treeshare.attention import NativeAttention
from treeshare.native import library

SOURCES = Path(treeshare.native.__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler"),
]

CASE = Case(
    (-1, 0, 0, 2),
    (80, 30, 300, 12),
    ((1, 4), (1, 17), (0, 1), (3, 40), *((2, length) for length in (0, 9, 33, 140, 41, 50))),
    prefilled=(3,),
    chunk=12,
    window=100,
    soft_cap=2.0,
    score_scale=2.0,
    has_sinks=True,
    head_dim=48,
    value_dim=36,
)

HIDE = """        if (tile.hidden[m] > 0)
            std::fill_n(scores, tile.hidden[m], -std::numeric_limits<float>::infinity());
"""
BEND = """        if (work.bend > 0)
            for (int n = 0; n < tile.max_seen; n += 16)
                store(scores + n, bent(mul(load(scores + n), broadcast(work.bend))));
"""
FAULTS = {
    "none": ("", ""),
    "scores are capped after keys are hidden": (BEND + HIDE, HIDE + BEND),
    "scores are not capped": (BEND, ""),
    "keys before the window are seen": (HIDE, ""),
    "a window is too narrow by a key": ("first_seen[row] - origin)", "first_seen[row] - origin + 1)"),
    "a window is too wide by a key": ("first_seen[row] - origin)", "first_seen[row] - origin - 1)"),
    "a sink counts twice": ("power_of_two(sink - larger))", "2 * power_of_two(sink - larger))"),
    "a sink does not move the maximum": ("        maximum = larger;\n", ""),
    "a query that sees nothing takes part": (
        "if (tile.hidden[m] >= tile.seen[m]) break;",
        "tile.hidden[m] = std::min(tile.hidden[m], count), tile.seen[m] = std::max(0, tile.seen[m]);",
    ),
    "a page is read from its beginning": ("? step.hidden_tokens[row] : 0", "? 0 : 0"),
    "a value is as wide as a key": ("value_stride + head * width", "value_stride + head * step.key_width"),
}
"""In ``attention.h`` and ``attention_work.h``: what is replaced, by what."""


def attend(kernel, case):
    backend = NativeAttention()
    backend._kernels = dict.fromkeys(backend._kernels, SimpleNamespace(treeshare_attend=kernel))
    forest = Forest(case)
    return forest, forest.attend(backend)


def check(kernel, element):
    """The budget, and that a row has its bits alone and in company."""
    case = replace(CASE, dtype=getattr(torch, element))
    forest, state = attend(kernel, case)
    assert_within_budget(forest, state)
    _, alone = attend(kernel, replace(case, sharing="none"))
    assert torch.equal(alone.out, state.out)
    assert torch.equal(alone.lse, state.lse)


@pytest.mark.parametrize(
    ("level", "element"),
    [pair for pair in (("amx", "bfloat16"), ("avx2", "float32")) if pair[0] in LEVELS],
)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_source_is_seen(fault, level, element, tmp_path):
    folder, (old, new) = tmp_path / "native", FAULTS[fault]
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("*.so", "*.cpp", "*.py", "__*"))
    headers = {name: (folder / name).read_text() for name in ("attention.h", "attention_work.h")}
    assert any(old in text for text in headers.values())
    for name, text in headers.items():
        (folder / name).write_text(text.replace(old, new))
    included = (f"{level}.h", f"{element}.h", "attention.h")
    (folder / "driver.cpp").write_text("".join(f'#include "{name}"\n' for name in included))
    words = ["g++", "-O1", "-w", "-fPIC", "-fopenmp", "-ffp-contract=off", "-shared", "driver.cpp"]
    subprocess.run([*words, "-o", "driver.so"], cwd=folder, check=True)
    built = ctypes.CDLL(str(folder / "driver.so"))
    kernel = getattr(built, f"treeshare_attend_{element}_{level}")
    kernel.argtypes, kernel.restype = library._ARGUMENTS["attend"], None
    if fault == "none":
        check(kernel, element)
    else:
        with pytest.raises(AssertionError):
            check(kernel, element)
