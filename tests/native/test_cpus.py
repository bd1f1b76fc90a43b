"""Which level a CPU gets by what it says of itself: made-up CPUs, each bit masked, a compiler's own view."""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import treeshare.native
from tests.kernel_levels import using_kernels
from treeshare.native import kernel_level, library

SOURCES = Path(treeshare.native.__file__).parent

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or library._load().library is None, reason="no kernels, or not an x86 CPU"
)

WORDS = ("leaf1_ecx", "leaf7_ebx", "leaf7_ecx", "leaf7_edx", "leaf7_1_eax", "xcr0")
"""``Cpu`` of ``cpu_x86.h``."""

BITS = {
    "sse3": ("leaf1_ecx", 0),
    "ssse3": ("leaf1_ecx", 9),
    "fma": ("leaf1_ecx", 12),
    "sse4_1": ("leaf1_ecx", 19),
    "sse4_2": ("leaf1_ecx", 20),
    "popcnt": ("leaf1_ecx", 23),
    "xsave": ("leaf1_ecx", 26),
    "osxsave": ("leaf1_ecx", 27),
    "avx": ("leaf1_ecx", 28),
    "f16c": ("leaf1_ecx", 29),
    "avx2": ("leaf7_ebx", 5),
    "avx512f": ("leaf7_ebx", 16),
    "avx512dq": ("leaf7_ebx", 17),
    "avx512bw": ("leaf7_ebx", 30),
    "avx512vl": ("leaf7_ebx", 31),
    "avx512vnni": ("leaf7_ecx", 11),
    "amx_bf16": ("leaf7_edx", 22),
    "amx_tile": ("leaf7_edx", 24),
    "amx_int8": ("leaf7_edx", 25),
    "avx_vnni": ("leaf7_1_eax", 4),
    "avx512_bf16": ("leaf7_1_eax", 5),
    "os_xmm": ("xcr0", 1),
    "os_ymm": ("xcr0", 2),
    "os_masks": ("xcr0", 5),
    "os_zmm": ("xcr0", 6),
    "os_zmm16": ("xcr0", 7),
    "os_tile_shapes": ("xcr0", 17),
    "os_tiles": ("xcr0", 18),
}
"""Intel's manual, volume 2, CPUID, and volume 1, section 13.3."""

HASWELL = {"sse3", "ssse3", "sse4_1", "sse4_2", "popcnt", "xsave", "osxsave", "avx", "f16c", "fma", "avx2"}
HASWELL |= {"os_xmm", "os_ymm"}
SKYLAKE = HASWELL | {"avx512f", "avx512dq", "avx512bw", "avx512vl", "os_masks", "os_zmm", "os_zmm16"}
CASCADE_LAKE = SKYLAKE | {"avx512vnni"}
COOPER_LAKE = CASCADE_LAKE | {"avx512_bf16"}
SAPPHIRE_RAPIDS = COOPER_LAKE | {"avx_vnni", "amx_bf16", "amx_tile", "amx_int8", "os_tile_shapes", "os_tiles"}

CPUS = {
    "Sandy Bridge": (HASWELL - {"avx2", "fma", "f16c"}, "none"),
    "Haswell": (HASWELL, "avx2"),
    "Zen 3": (HASWELL, "avx2"),
    "Alder Lake": (HASWELL | {"avx_vnni"}, "avx2"),
    "Knights Landing": (HASWELL | {"avx512f", "os_masks", "os_zmm", "os_zmm16"}, "avx2"),
    "Skylake-SP": (SKYLAKE, "avx512f"),
    "Cascade Lake": (CASCADE_LAKE, "avx512vnni"),
    "Ice Lake": (CASCADE_LAKE, "avx512vnni"),
    "Cooper Lake": (COOPER_LAKE, "avx512"),
    "Zen 4": (COOPER_LAKE, "avx512"),
    "Zen 5": (COOPER_LAKE | {"avx_vnni"}, "avx512"),
    "Sapphire Rapids": (SAPPHIRE_RAPIDS, "amx"),
    "a machine that hides BF16 and AMX": (
        SAPPHIRE_RAPIDS - {"avx512_bf16", "amx_bf16", "amx_tile", "amx_int8"},
        "avx512vnni",
    ),
    "a machine that hides BF16 and shows tiles": (SAPPHIRE_RAPIDS - {"avx512_bf16"}, "avx512vnni"),
    "a machine that shows BF16 without AVX512VL": (COOPER_LAKE - {"avx512vl"}, "avx2"),
    "a machine that shows AVX-VNNI for AVX-512 VNNI": (SKYLAKE | {"avx_vnni"}, "avx512f"),
    "a machine that hides tiles' codes of 8 bits": (SAPPHIRE_RAPIDS - {"amx_int8"}, "avx512vnni"),
    "a system without tiles": (SAPPHIRE_RAPIDS - {"os_tile_shapes", "os_tiles"}, "avx512vnni"),
    "a system without 512 bits": (SAPPHIRE_RAPIDS - {"os_masks", "os_zmm", "os_zmm16"}, "avx2"),
    "a system without 256 bits": (SAPPHIRE_RAPIDS - {"os_ymm", "os_masks", "os_zmm", "os_zmm16"}, "none"),
    "a system without XSAVE": ({bit for bit in SAPPHIRE_RAPIDS if bit[:2] != "os"}, "none"),
}

BASE = HASWELL - {"f16c"}
WIDE = SKYLAKE  # compilers differ in whether AVX-512 implies F16C
NEEDED = {
    "amx": WIDE | {"avx512_bf16", "amx_bf16", "amx_int8", "amx_tile", "os_tile_shapes", "os_tiles"},
    "avx512": WIDE | {"avx512_bf16"},
    "avx512vnni": WIDE | {"avx512vnni"},
    "avx512f": WIDE,
    "avx2": BASE,
}
"""By level: exactly these bits are needed."""


def has_level(bits, level):
    words = dict.fromkeys(WORDS, 0)
    for word, number in (BITS[bit] for bit in bits):
        words[word] |= 1 << number
    found = library._load().library.treeshare_cpu_has_level(
        (ctypes.c_uint32 * len(WORDS))(*words.values()), level.encode()
    )
    return int(found)


@pytest.mark.parametrize("cpu", CPUS)
def test_the_best_level_of_a_cpu(cpu, monkeypatch):
    bits, expected = CPUS[cpu]
    monkeypatch.setattr(library, "_has_level", lambda name: has_level(bits, name))
    slow = {"avx512"} if "avx_vnni" in bits and not cpu.startswith("Zen") else set()
    monkeypatch.setattr(library, "_is_slow", slow.__contains__)
    with using_kernels("auto"):
        assert kernel_level() == expected


def test_which_cpu_multiplies_bfloat16_slowly():
    text = Path("/proc/cpuinfo").read_text()
    is_slow = "GenuineIntel" in text and re.search(r"\bavx_vnni\b", text) is not None
    assert {level.name for level in library.LEVELS if library._is_slow(level.name)} <= {"avx512"}
    assert library._is_slow("avx512") == is_slow


@pytest.mark.parametrize("level", NEEDED)
def test_each_bit_is_needed_and_no_other(level):
    assert has_level(NEEDED[level], level) == 1
    assert {bit for bit in BITS if has_level(set(BITS) - {bit}, level) == 0} == NEEDED[level]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.parametrize("level", NEEDED)
def test_all_that_a_compiler_may_use_is_needed(level):
    """What it says it has, given the level's features, beyond what every x86-64 CPU has."""

    def macros(*flags):
        words = ["g++", *flags, "-dM", "-E", "-x", "c++", "/dev/null"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return set(re.findall(r"^#define __(\w+?)__ 1$", done.stdout, re.MULTILINE))

    features = library._load().library.treeshare_level_features
    features.argtypes, features.restype = (ctypes.c_char_p,), ctypes.c_char_p
    used = macros(*(f"-m{name}" for name in features(level.encode()).decode().split(","))) - macros()
    used = {name.lower().replace("avx512bf16", "avx512_bf16") for name in used} - {"crc32"}  # SSE4.2 has it
    assert {"avx2", "popcnt"} <= used or level == "amx"
    assert used <= NEEDED[level]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.parametrize("path", sorted(SOURCES.glob("kernels_a[mv]*.cpp")), ids=lambda path: path.stem)
def test_a_levels_code_uses_the_features_that_are_checked(path):
    """The target of every function of the level, after the preprocessor; some include another level's."""
    code = path.stem.split("_")[1]
    features = library._load().library.treeshare_level_features
    features.argtypes, features.restype = (ctypes.c_char_p,), ctypes.c_char_p
    done = subprocess.run(
        ["g++", "-E", "-P", "-fopenmp", str(path)], capture_output=True, text=True, check=True
    )
    targets = re.findall(r"__attribute__\(\(target\(([^()]*)\)\)\)", done.stdout)
    used = [set("".join(re.findall(r'"([^"]*)"', words)).split(",")) for words in targets]
    assert set().union(*used) == set(features(code.encode()).decode().split(","))


INT8 = {
    "Haswell": "avx2",
    "Alder Lake": "avx2",
    "Skylake-SP": "avx512f",
    "Cascade Lake": "avx512vnni",
    "Zen 4": "avx512vnni",
    "Sapphire Rapids": "amx",
    "a machine that shows AVX-VNNI for AVX-512 VNNI": "avx512f",
    "a machine that hides tiles' codes of 8 bits": "avx512vnni",
    "a system without 512 bits": "avx2",
}
"""Which kernels serve it in int8 at its best level, and at level portable."""


@pytest.mark.parametrize("cpu", INT8)
def test_the_int8_kernels_of_a_cpu(cpu, monkeypatch):
    bits, level = CPUS[cpu]
    own = {"portable": 1}
    monkeypatch.setattr(library, "_has_level", lambda name: own.get(name, has_level(bits, name)))
    assert library.int8_code(level) == library.int8_code("portable") == INT8[cpu]
    assert library.int8_code("none") == "none"
    assert library.int8_codes()[-1] == "portable"


def test_bfloat16_without_vnni():
    """No such CPU is known; a machine may hide the bit."""
    bits = COOPER_LAKE - {"avx512vnni"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "_has_level", lambda name: has_level(bits, name) if name != "portable" else 1)
        assert library.int8_code("avx512") == "avx512f"
