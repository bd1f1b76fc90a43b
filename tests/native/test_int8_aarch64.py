"""NEON's kernels in codes of 8 bits on emulated ARM CPUs: numpy's bytes, by the level that each CPU has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.native.int8_calls import expected, int8_case
from tests.native.test_aarch64 import COMPILER, MISSING, SOURCES, emulate, options, run
from treeshare.native import library

CODES = library.int8_codes() if library._load().library else ()

CPUS = {
    "neon": "cortex-a72",  # nothing but Armv8.0-A: another instruction would end it
    "portable": "cortex-a72",
    "neon_dotprod": "neoverse-n1",
    "neon_i8mm": "max",
}

needs_emulator = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason="no cross compiler or emulator for ARM"),
]


def differing(got, wanted):
    """The names of results that do not have the bytes that they should."""
    assert got.keys() == wanted.keys()
    return [
        name
        for name, values in wanted.items()
        if got[name].shape != values.shape or got[name].tobytes() != np.ascontiguousarray(values).tobytes()
    ]


def assert_same_bytes(got, wanted):
    assert differing(got, wanted) == []


@pytest.mark.parametrize("code", CODES)
def test_the_calls_themselves(code):
    """By this machine's kernels."""
    assert_same_bytes(int8_case().run(library._load().library, code), expected())


def compile_kernels(sources, folder):
    _, arguments = options()
    chosen = [*sorted(sources.glob("kernels_*_int8.cpp")), sources / "levels.cpp"]
    words = [COMPILER, *arguments, "-fPIC", "-shared", *chosen, "-o", folder / "kernels.so"]
    subprocess.run(words, check=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    compile_kernels(SOURCES, folder)
    driver = [COMPILER, "-fopenmp", "-Wl,--no-as-needed", Path(__file__).with_name("driver.cpp"), "-ldl"]
    subprocess.run([*driver, "-o", folder / "driver"], check=True)
    return folder


class TestEmulated:
    pytestmark = needs_emulator

    @pytest.mark.parametrize("threads", [1, 3])
    @pytest.mark.parametrize("code", CPUS)
    def test_arm_has_numpys_bytes(self, built, code, threads):
        assert_same_bytes(run(built, CPUS[code], int8_case(), code, threads=threads), expected())

    @pytest.mark.parametrize(
        ("cpu", "levels"), [("cortex-a72", (1, 0, 0)), ("neoverse-n1", (1, 1, 0)), ("max", (1, 1, 1))]
    )
    def test_the_levels_of_a_cpu(self, built, cpu, levels):
        names = ("neon", "neon_dotprod", "neon_i8mm")
        assert tuple(int(emulate(built, cpu, name)) for name in names) == levels

    @pytest.mark.parametrize("code", ["neon_dotprod", "neon_i8mm"])
    def test_a_cpu_without_the_instruction_ends(self, built, code):
        with pytest.raises(AssertionError):
            run(built, "cortex-a72", int8_case(), code)

    @pytest.mark.parametrize(
        ("code", "file", "old", "new"),
        [
            ("neon", "int8_neon.h", "halves[v + 1])", "halves[v])"),
            ("neon_dotprod", "int8_panel.h", "x + 4 * m)", "x)"),
            ("neon_i8mm", "int8_neon_i8mm.h", "vzip2q", "vzip1q"),
        ],
    )
    def test_a_fault_in_the_source_is_seen(self, built, code, file, old, new, tmp_path):
        shutil.copytree(SOURCES, tmp_path / "native", ignore=shutil.ignore_patterns("*.py", "*.so"))
        text = (SOURCES / file).read_text()
        assert old in text
        (tmp_path / "native" / file).write_text(text.replace(old, new))
        compile_kernels(tmp_path / "native", tmp_path)
        shutil.copy(built / "driver", tmp_path)
        found = differing(run(tmp_path, CPUS[code], int8_case(), code), expected())
        assert any(name.startswith("out") for name in found)
