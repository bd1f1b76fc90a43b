"""What ``pip install`` brings: built from the source distribution, as an index would."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

HEAVY = ("torch", "transformers", "numpy", "networkx", "datasets", "fastapi", "ray", "lm_eval", "inspect_ai")


def test_importing_treeshare_loads_nothing_heavy():
    code = f"import sys, treeshare, tasks; print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_wheel_from_the_source_distribution_holds_everything(tmp_path):
    build = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    tools = tmp_path / "tools"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "--target", tools, "setuptools>=77"], check=True)
    subprocess.run(
        [sys.executable, "-c", build, tmp_path], cwd=ROOT, check=True, env={"PYTHONPATH": str(tools)}
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "treeshare/native/common.h"} <= names

    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, sdist], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        entries = archive.read(next(name for name in held if name.endswith("entry_points.txt"))).decode()
    tracked = subprocess.run(
        ["git", "ls-files", "treeshare", "tasks"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    wanted = [name for name in tracked if name.endswith((".py", ".css", ".js", ".typed"))]
    assert len(wanted) > 100
    assert set(wanted) <= held
    assert "treeshare = treeshare.cli:main" in entries
