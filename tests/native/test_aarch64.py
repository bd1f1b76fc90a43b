"""NEON's kernels on emulated ARM CPUs: this machine's bits, and with BFMMLA sums as exact as they can be.

The library is compiled by Debian's cross compiler, and the calls are run in qemu's user mode.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest

import treeshare.native
from tests.native.calls import Case, to_floats
from tests.native.cases import (
    CASES,
    LINEARS,
    NUM_ROWS,
    PREFILLED,
    PRIVATE,
    attention_case,
    linear_case,
    rows_case,
)
from treeshare.native import kernel_levels, library

SOURCES = Path(treeshare.native.__file__).parent
ROOT = Path(__file__).parents[2]

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
MISSING = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"no {' and no '.join(MISSING)}: g++-aarch64-linux-gnu, qemu-user-static"
    ),
]
needs_avx2 = pytest.mark.skipif(
    "avx2" not in kernel_levels(), reason="no kernels of this machine to compare with"
)

BASELINE, BF16 = "cortex-a72", "max"
"""CPUs that qemu is told to be: Armv8.0-A, and one with all there is."""

ELEMENTS = ["bfloat16", "float32"]


def options():
    """What the extension is compiled from and with."""
    [extension] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    return [ROOT / source for source in extension["sources"]], extension["extra-compile-args"]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """``build(name, *flags)``: the driver and the kernels' library in a folder, compiled for aarch64."""

    def build(*flags):
        folder = tmp_path_factory.mktemp("aarch64")
        sources, arguments = options()
        objects = []
        for source in sources:
            objects.append(folder / f"{source.stem}.o")
            words = [COMPILER, *arguments, "-fPIC", *flags, "-c", source, "-o", objects[-1]]
            subprocess.run(words, check=True)
        subprocess.run([COMPILER, "-shared", *objects, "-o", folder / "kernels.so"], check=True)
        driver = [
            COMPILER,
            "-fopenmp",
            "-Wl,--no-as-needed",
            Path(__file__).with_name("driver.cpp"),
            "-ldl",
            "-o",
            folder / "driver",
        ]
        subprocess.run(driver, check=True)
        return folder

    return build


@pytest.fixture(scope="module")
def built(build):
    return build()


def emulate(folder, cpu, *words, threads=2):
    command = [EMULATOR, "-cpu", cpu, "-L", "/usr/aarch64-linux-gnu", "-E", f"OMP_NUM_THREADS={threads}"]
    command += [folder / "driver", folder / "kernels.so", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(folder, cpu, calls, level, **options):
    calls.write(folder / "calls", level)
    emulate(folder, cpu, folder / "calls", folder / "result", **options)
    return calls.read(folder / "result")


def assert_same_bits(got, expected):
    assert got.keys() == expected.keys()
    assert [name for name in expected if to_floats(expected[name]).any()] != []
    differing = {}
    for name, values in expected.items():
        a, b = to_floats(got[name]), to_floats(values)
        same = (a.view(f"u{a.itemsize}") == b.view(f"u{b.itemsize}")) | ((a != a) & (b != b))
        if not same.all():
            differing[name] = int((~same).sum())
    assert differing == {}


def test_every_kernel_is_called():
    called = {
        name.split("_bf")[0].split("_fl")[0]
        for case in CASES.values()
        for name, *_ in case("bfloat16").calls._calls
    }
    assert called == set(library._ARGUMENTS)


@pytest.mark.parametrize(("cpu", "expected"), [(BASELINE, (1, 0)), ("neoverse-n1", (1, 0)), (BF16, (1, 1))])
def test_the_level_of_a_cpu(built, cpu, expected):
    found = tuple(int(emulate(built, cpu, name)) for name in ("neon", "neon_bfmmla"))
    assert found == expected
    assert emulate(built, cpu, "avx2") == "-1\n"


@needs_avx2
@pytest.mark.skipif(platform.machine() == "aarch64", reason="this machine has NEON itself")
@pytest.mark.parametrize("level", ["neon", "portable"])
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("case", CASES)
def test_arm_has_avx2s_bits(built, case, element, level):
    """In every kernel, on a CPU with nothing but Armv8.0-A: another instruction would end it."""
    calls = CASES[case](element).calls
    assert_same_bits(run(built, BASELINE, calls, level), calls.run(library._load().library, "avx2"))


def test_the_comparison_sees_one_bit(built):
    calls = linear_case("float32").calls
    expected = run(built, BASELINE, calls, "neon")
    changed = {name: values.copy() for name, values in expected.items()}
    changed["34 47 5"].view(np.uint32)[4, 46] ^= 1
    with pytest.raises(AssertionError, match="'34 47 5': 1"):
        assert_same_bits(changed, expected)


def check_rows(folder, level, cpu, threads=2):
    """A row's bits are the same beside any others."""
    got = run(folder, cpu, linear_case("bfloat16").calls, level, threads=threads)
    for num_inputs, num_outputs in LINEARS:
        whole = got[f"{num_inputs} {num_outputs} {max(NUM_ROWS)}"]
        for num_rows in NUM_ROWS:
            np.testing.assert_array_equal(got[f"{num_inputs} {num_outputs} {num_rows}"], whole[:num_rows])
    for has_features in (False, True):
        steps = {
            (prefilled, num_rows): attention_case(
                "bfloat16", PRIVATE[:num_rows], prefilled, has_features=has_features
            )
            for prefilled, num_rows in ((PREFILLED, 5), (PREFILLED, 0), (0, 5), (0, 1), (0, 2))
        }
        out = {key: run(folder, cpu, case.calls, level, threads=threads) for key, case in steps.items()}
        for name in ("out", "lse"):
            np.testing.assert_array_equal(out[PREFILLED, 5][name][:PREFILLED], out[PREFILLED, 0][name])
            for num_rows in (1, 2):
                np.testing.assert_array_equal(out[0, 5][name][:num_rows], out[0, num_rows][name])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("level", "cpu"), [("neon", BASELINE), ("neon_bfmmla", BF16)])
def test_a_rows_bits_are_its_own(built, level, cpu, threads):
    check_rows(built, level, cpu, threads)


FAULTS = {
    "pairs in another order": ("multiply_pair(sum, vuzp1q_u32(low, high), first);\n", ""),
    "a row's neighbour": ("{of_second(a.q0", "{of_first(a.q0"),
    "rows that do not lie there": (
        "return vcombine_u16(vld1_u16(a), vld1_u16(a + stride))",
        "return vld1q_u16(a)",
    ),
}
"""In ``neon_bfmmla.h``: what is replaced, by what."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_a_rows_bits(built, fault, tmp_path):
    sources, arguments = options()
    changed = tmp_path / "native"
    shutil.copytree(SOURCES, changed, ignore=lambda _, names: [name for name in names if name[-2:] != ".h"])
    header = (SOURCES / "neon_bfmmla.h").read_text()
    assert FAULTS[fault][0] in header
    (changed / "neon_bfmmla.h").write_text(header.replace(*FAULTS[fault]))
    [name] = [source.name for source in sources if "bfmmla" in source.name]
    shutil.copy(SOURCES / name, changed)
    objects = [path for path in built.glob("*.o") if path.stem != Path(name).stem]
    words = [
        COMPILER,
        *arguments,
        "-fPIC",
        "-shared",
        changed / name,
        *objects,
        "-o",
        tmp_path / "kernels.so",
    ]
    subprocess.run(words, check=True)
    shutil.copy(built / "driver", tmp_path)
    with pytest.raises(AssertionError):
        check_rows(tmp_path, "neon_bfmmla", BF16)


def test_bfmmla_sums_as_exactly_as_it_can(built):
    """Each sum of a pair, and each with what was before, is off by one unit of a float's last place."""
    case, level = linear_case("bfloat16"), "neon_bfmmla"
    got = run(built, BF16, case.calls, level)
    again = Case("bfloat16")
    for num_inputs, num_outputs in LINEARS:
        weight, bias, x = (
            to_floats(again.numbers(*shape)).astype(np.float64)
            for shape in ((num_outputs, num_inputs), (num_outputs,), (max(NUM_ROWS), num_inputs))
        )
        exact, size = x @ weight.T + bias, np.abs(x) @ np.abs(weight).T + np.abs(bias)
        budget = num_inputs * 2.0**-23 * size + 2.0**-8 * np.abs(exact) + 1e-30
        name = f"{num_inputs} {num_outputs} {max(NUM_ROWS)}"
        assert (np.abs(to_floats(got[name]) - exact) <= budget).all()


def test_bfmmla_attends_as_neon_does(built):
    """But for the rounding of weights to bfloat16, which moves a mean of values by 2 ** -8 of their size."""
    calls = attention_case("bfloat16").calls
    plain, got = run(built, BF16, calls, "neon"), run(built, BF16, calls, "neon_bfmmla")
    difference = np.abs(to_floats(got["out"]) - to_floats(plain["out"]))
    assert difference.max() > 0
    assert (difference <= 2.0**-7 * 1.0 + 2.0**-7 * np.abs(to_floats(plain["out"]))).all()
    np.testing.assert_array_less(np.abs(got["lse"] - plain["lse"]), 2.0**-8)


def test_bfmmla_changes_sums_alone(built):
    calls = rows_case("bfloat16").calls
    assert_same_bits(run(built, BF16, calls, "neon_bfmmla"), run(built, BF16, calls, "neon"))
