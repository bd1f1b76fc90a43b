"""The kernels compiled for GPUs that are not here: nothing spills, everything fits, tensor cores are used.

Compiling needs a process in which Triton does not interpret: the table's script runs in its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "bench" / "triton_kernels.json"
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
FAMILIES = {80: {"mma"}, 90: {"mma", "wgmma"}, 100: {"mma", "tcgen05"}}
HEAD_DIMS = {64, 80, 96, 128, 192, 256}
DTYPES = {"float16", "bfloat16", "float32"}
PLAIN = {"store_tokens", "attend_slices", "attend_slices causal", "attend_pages", "merge_states"}
KERNELS = PLAIN | {f"{kernel} featured" for kernel in PLAIN - {"store_tokens"}}

ONE = ("--capability", "90", "--dtype", "bfloat16", "--head-dim", "128")

pytest.importorskip("triton", reason="Triton is not installed")


def compiled(folder, *options):
    """The records of a fresh compilation."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder / "cache")}
    words = [
        sys.executable,
        str(ROOT / "scripts" / "bench" / "triton_table.py"),
        "--out",
        str(folder / "table"),
    ]
    environment["PYTHONPATH"] = str(ROOT)
    subprocess.run([*words, *options], env=environment, check=True, capture_output=True, timeout=1800)
    return json.loads((folder / "table.json").read_text())["kernels"]


def check(records):
    assert records
    for record in records:
        name = f"{record['kernel']} sm_{record['capability']} {record['dtype']} {record['head_dim']}"
        is_masked = record["kernel"].endswith("featured") and record["dtype"] == "float32"
        limit = 32 if is_masked and record["capability"] == 80 else 0  # of MASKED_SLICE_TILES
        assert record["stack_bytes"] <= limit, f"{name} spills registers"
        assert record["registers"] <= 255, name
        assert record["registers"] * 32 * record["num_warps"] <= 65_536, f"{name}: a program does not fit"
        assert record["shared_bytes"] <= SHARED_BYTES[record["capability"]], f"{name}: too much shared memory"
        used = {instruction.split(".")[0] for instruction in record["tensor_cores"]}
        if record["kernel"].startswith("attend") and record["dtype"] != "float32":
            assert used, f"{name} uses no tensor cores"
            assert used <= FAMILIES[record["capability"]], name
            kind = {"float16": "f16", "bfloat16": "bf16"}[record["dtype"]]
            assert all(kind in i or "kind::f16" in i for i in record["tensor_cores"]), (
                f"{name}: other operands"
            )
        else:
            assert not used, f"{name} rounds float32"
        if record["kernel"].startswith("attend"):
            assert record["wide_copies"], f"{name} does not load 16 bytes at a time"


def test_the_committed_table_is_whole_and_within_limits():
    records = json.loads(TABLE.read_text())["kernels"]
    keys = {
        (record["kernel"], record["capability"], record["dtype"], record["head_dim"]) for record in records
    }
    assert keys == {(k, c, d, h) for k in KERNELS for c in SHARED_BYTES for d in DTYPES for h in HEAD_DIMS}
    assert len(records) == len(keys)
    check(records)


def test_one_kernel_compiles(tmp_path):
    """A short form of the next tests, which take minutes."""
    records = compiled(tmp_path, *ONE, "--kernel", "attend_slices")
    check(records)
    (slices,) = records
    assert slices["kernel"] == "attend_slices"
    assert any(name.startswith("wgmma") for name in slices["tensor_cores"])


@pytest.mark.slow
def test_all_kernels_compile_for_one_device(tmp_path):
    records = compiled(tmp_path, *ONE)
    assert {record["kernel"] for record in records} == KERNELS
    check(records)


@pytest.mark.slow
def test_every_kernel_compiles_as_the_table_says(tmp_path):
    records = compiled(tmp_path)
    check(records)
    committed = json.loads(TABLE.read_text())
    if committed["triton"] == importlib.metadata.version("triton"):
        assert records == committed["kernels"], "run scripts/bench/triton_table.py"
