"""FastTree's tree shapes, and the script that measures them: here it can only check."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.scripts.loading import BENCH, ROOT, load_script


@pytest.fixture
def shapes():
    return load_script(BENCH, "tree_shapes")


def test_every_shape_is_a_tree(shapes):
    assert len(set(shapes.FAST_TREE)) == 15
    for shape in (*shapes.FAST_TREE, *(shape.shrunk(16) for shape in shapes.FAST_TREE)):
        assert shape.widths[0] == 1
        assert len(shape.widths) == len(shape.lengths)
        for level in range(1, len(shape.widths)):
            parents = [shape.parent(level, place) for place in range(shape.widths[level])]
            assert parents == sorted(parents)
            assert set(parents) == set(range(shape.widths[level - 1])), "every node has a child"
    assert max(shape.shrunk(16).widths[-1] for shape in shapes.FAST_TREE) == 16


def test_without_a_gpu_nothing_is_measured(tmp_path):
    """``nvidia-smi`` that finds nothing, and none at all."""
    (tmp_path / "bin").mkdir()
    for name in ("bash", "dirname", "grep"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    words = [str(tmp_path / "bin" / "bash"), str(ROOT / "scripts" / "bench_gpu.sh")]
    for _ in range(2):
        result = subprocess.run(
            words, env={"PATH": str(tmp_path / "bin")}, capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == "bench_gpu: nvidia-smi finds no GPU: nothing was measured.\n"
        fake = tmp_path / "bin" / "nvidia-smi"
        fake.write_text(f"#!{words[0]}\necho 'No devices were found'\n")
        fake.chmod(0o755)


@pytest.mark.slow
def test_every_shape_is_right_when_interpreted(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    words = [sys.executable, str(BENCH / "gpu_bench.py"), "--out", str(tmp_path / "gpu")]
    words += ["--device", "cpu", "--leaves", "16", "--heads", "0", "--seconds", "1e6"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(words, env=environment, check=True, capture_output=True, timeout=1200)
    text = (tmp_path / "gpu.md").read_text()
    rows = [line for line in text.splitlines() if "| 16/1 |" in line]
    assert len(rows) == 15
    assert all(row.endswith("| - | - | - |") for row in rows), "nothing is timed"
    assert "Interpreted, so nothing was timed" in text
