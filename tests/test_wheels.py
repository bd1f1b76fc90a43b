"""What ``scripts/build_wheels.sh`` makes: it has the kernels of all levels, and needs no compiler."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from treeshare.native import kernel_level, kernel_levels, library

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "build_wheels.sh"

LEVELS = {"x86_64": {"avx512", "avx512f", "avx2", "portable"}, "aarch64": {"neon", "portable"}}
"""Codes of levels with float32, by architecture."""

COMPILERS = {"x86_64": "x86-64-linux-gnu-g++", "aarch64": "aarch64-linux-gnu-g++"}


def compiler_of(architecture):
    return "g++" if architecture == platform.machine() else COMPILERS[architecture]


@pytest.fixture(scope="module", params=list(LEVELS))
def wheel(request, tmp_path_factory):
    """A wheel for each architecture whose compiler is here."""
    compiler = compiler_of(request.param)
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} to build a wheel for {request.param} with")
    folder = tmp_path_factory.mktemp("wheels")
    words = ["bash", SCRIPT, "--out", folder, request.param]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = folder.iterdir()
    assert done.stdout == f"{path}\n"
    return path


@pytest.mark.parametrize("words", [["--output"], ["arm64"], ["--out"]])
def test_a_word_that_it_does_not_know(words):
    done = subprocess.run(["bash", SCRIPT, *words], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "expected --out FOLDER, x86_64 or aarch64" in done.stderr or "--out needs a folder" in done.stderr


def test_a_compiler_that_is_missing_is_named(tmp_path):
    """And nothing is built, for no architecture."""
    for name in ("bash", "dirname", "mkdir", "uname"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        ["bash", SCRIPT, "--out", tmp_path / "out"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"build_wheels\.sh: g\+\+ is missing, .* sudo apt-get install g\+\+\n", done.stderr)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_its_tag_is_true(wheel):
    """Any Python 3, this architecture, glibc 2.28; the script refuses what auditwheel would not let pass."""
    architecture = wheel.stem.rpartition("manylinux_2_28_")[2]
    assert re.fullmatch(rf"treeshare-[\d.]+-py3-none-manylinux_2_28_{architecture}\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        held = archive.namelist()
        described = archive.read(next(name for name in held if name.endswith("WHEEL"))).decode()
    assert f"Tag: py3-none-manylinux_2_28_{architecture}\n" in described
    assert "Root-Is-Purelib: false\n" in described
    assert {"treeshare/py.typed", "treeshare/tasks/apps.py", "treeshare/native/_kernels.so"} <= set(held)
    assert [name for name in held if name.endswith(".so")] == ["treeshare/native/_kernels.so"]


@pytest.mark.slow
def test_it_needs_no_newer_library(wheel, tmp_path):
    """By the symbols that the library asks for, counted here again, and no OpenMP library by name."""
    tool = compiler_of(wheel.stem.rpartition("manylinux_2_28_")[2]).replace("g++", "objdump")
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool}")
    with zipfile.ZipFile(wheel) as archive:
        path = archive.extract("treeshare/native/_kernels.so", tmp_path)
    shown = subprocess.run([tool, "-p", "-T", path], capture_output=True, text=True, check=True).stdout
    versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", shown)}
    assert versions
    assert max(versions) <= (2, 28)
    needed = re.findall(r"NEEDED +(\S+)", shown)
    assert "libc.so.6" in needed
    assert [name for name in needed if "omp" in name] == []
    assert "*UND*" in shown
    assert re.search(r"\*UND\*.* GOMP_parallel$", shown, re.MULTILINE)


@pytest.mark.slow
def test_all_levels_are_in_it(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        code = archive.read("treeshare/native/_kernels.so")
    exported = set(re.findall(rb"treeshare_linear_float32_(\w+)", code))
    architecture = wheel.stem.rpartition("manylinux_2_28_")[2]
    assert {name.decode() for name in exported} == LEVELS[architecture]
    bfloat16 = set(re.findall(rb"treeshare_linear_bfloat16_(\w+)", code))
    assert (b"neon_bfmmla" in bfloat16) == (architecture == "aarch64")


ASKED = """
import json, sys
from pathlib import Path
import torch, treeshare
from treeshare.native import kernel_level, kernel_levels, kernels, library
print(json.dumps({
    "package": str(Path(treeshare.__file__).parent), "library": library._load().library._name,
    "level": kernel_level(), "levels": kernel_levels(),
    "kernels": all(kernels(dtype) is not None for dtype in (torch.float32, torch.bfloat16))}))
"""


LOADED_TWICE = """
import contextlib
from treeshare import LLM
from treeshare.errors import TreeshareError
for _ in range(2):
    with contextlib.suppress(TreeshareError):
        LLM("/nowhere")
"""


@pytest.fixture
def bare_environment(tmp_path):
    """``install(what)``: a fresh environment with it and what it depends on, and no compiler in its PATH."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC", "CXX")}
    variables |= {"PATH": str(programs), "HF_HUB_OFFLINE": "1"}

    def run(program, *words):
        options = {"cwd": tmp_path, "env": variables, "capture_output": True, "text": True}
        return subprocess.run([programs / program, *words], check=False, **options)

    def install(*words):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", programs / "python"]
        done = subprocess.run(
            [*pip, "install", "-q", "--no-deps", *words],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        place = Path(
            run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
        )
        (place / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        return place, run

    return install


def findings(run):
    """Of doctor, by their names."""
    done = run("treeshare", "doctor", "--json")
    return {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}


@pytest.mark.slow
def test_it_has_kernels_where_no_compiler_is(wheel, bare_environment):
    if platform.machine() not in wheel.name:
        pytest.skip("not for this machine")
    place, run = bare_environment(wheel)
    asked = run("python", "-c", ASKED)
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout)
    assert found["package"] == str(place / "treeshare")
    assert found["library"] == str(place / "treeshare" / "native" / "_kernels.so")
    assert found["kernels"]
    assert tuple(found["levels"]) == kernel_levels()
    said = findings(run)
    assert said["kernels"]["data"]["used"] == found["level"] == kernel_level()
    assert (said["kernels"]["remedy"], said["C++ compiler"]["remedy"]) == ("", "")
    assert said["C++ compiler"]["data"]["path"] is None


@pytest.mark.slow
def test_a_source_installation_without_a_compiler_says_what_helps(bare_environment, tmp_path):
    """Once; and what it says, done where a compiler is, brings the kernels."""
    checkout = tmp_path / "checkout"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, tracked.stdout.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name, follow_symlinks=False)
    _, run = bare_environment(checkout)
    said = run("python", "-c", LOADED_TWICE).stderr.splitlines()
    assert [line.partition(":")[0] for line in said] == ["treeshare"]
    pip = f"{tmp_path / 'venv/bin/python'} -m pip"
    command = f"{pip} install --no-cache-dir --force-reinstall --no-deps {checkout}"
    assert said[0].endswith(f"apt-get install g++ (or another C++ compiler), then {command}")
    doctor = findings(run)
    assert doctor["kernels"]["found"] == "none (not built)"
    assert doctor["kernels"]["remedy"].endswith(command)
    assert doctor["C++ compiler"]["remedy"] == "needed to build the kernels; see the line on kernels"
    if shutil.which("g++") is None or library._load().library is None:
        pytest.skip("no compiler to follow the remedy with")
    subprocess.run(command.split(), check=True)
    assert findings(run)["kernels"]["data"]["used"] == kernel_level()
