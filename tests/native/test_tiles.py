"""Level ``amx``: the manual's bits for any number of rows; permission; forks; faults in the source."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import treeshare.native
from tests.kernel_levels import LEVELS, num_threads, using_kernels
from treeshare.models.linear import KernelLinear, weights_of
from treeshare.native import library

SOURCES = Path(treeshare.native.__file__).parent

pytestmark = pytest.mark.skipif("amx" not in LEVELS, reason="no tiles of bfloat16 on this machine")

SHAPES = [(2, 1), (34, 47), (64, 32), (90, 33)]
"""Inputs and outputs: with whole tiles of 32 inputs and panels of 32 outputs, and without."""

MAX_ROWS = 70
TINY = float(np.finfo(np.float32).tiny)


def flushed(x):
    """float64 rounded to float32; what is too small for a normal number becomes zero of its sign."""
    x = x.astype(np.float32)
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x)


def multiply_add(total, a, b):
    """Exact in float64 for the sizes that are tested here, then rounded once."""
    return flushed(total.astype(np.float64) + a.astype(np.float64) * b.astype(np.float64))


def model(linear, x):
    """TDPBF16PS as Intel's manual defines it, number by number: bfloat16 ``[num_rows, num_outputs]``."""
    weight, x = (flushed(t.float().numpy().astype(np.float64)) for t in (linear.weight, x))
    padding = ((0, 0), (0, -weight.shape[1] % 32))
    weight, x = np.pad(weight, padding)[None], np.pad(x, padding)[:, None]
    total = np.zeros((x.shape[0], weight.shape[1]), np.float32)
    for tile in range(0, x.shape[2], 32):
        pair = [np.zeros_like(total), np.zeros_like(total)]
        for i in range(tile, tile + 32):
            pair[i % 2] = multiply_add(pair[i % 2], x[:, :, i], weight[:, :, i])
        both = flushed(pair[0].astype(np.float64) + pair[1])
        total = flushed(total.astype(np.float64) + both)
    bias = 0.0 if linear.bias is None else linear.bias.float().numpy()  # without one -0 becomes 0, too
    total = (total.astype(np.float64) + bias).astype(np.float32)
    return torch.from_numpy(flushed(total.astype(np.float64))).to(torch.bfloat16)


def layer(num_inputs, num_outputs, *, bias=True):
    linear = nn.Linear(num_inputs, num_outputs, bias=bias)
    draws = torch.Generator().manual_seed(num_inputs * num_outputs)
    for parameter in linear.parameters():
        nn.init.normal_(parameter, generator=draws)
    linear = linear.to(torch.bfloat16).requires_grad_(False)
    memory = torch.full((linear.weight.numel() + 64,), torch.nan, dtype=torch.bfloat16)
    memory[:-64] = linear.weight.flatten()  # behind the last weight lies what may not be read
    linear.weight.data = memory[:-64].view(num_outputs, num_inputs)
    return linear


def rows_for(linear):
    """Ordinary rows, rows whose products nearly cancel, and rows whose products are no normal numbers."""
    draws = torch.Generator().manual_seed(7)
    x = torch.randn(MAX_ROWS, linear.in_features, generator=draws)
    third = linear.in_features // 3
    x[1::4, third : 2 * third] = -512 * x[1::4, :third]
    x[1::4, :third] *= 512
    x[2::4] *= 2.0**-125
    x[3::4] *= 2.0**-128
    return x.to(torch.bfloat16)


def bits(x):
    return x.view(torch.int16)


@pytest.fixture(autouse=True)
def tiles():
    with using_kernels("amx"):
        yield


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), SHAPES)
def test_bits_are_those_of_the_manual(num_inputs, num_outputs, bias):
    linear = layer(num_inputs, num_outputs, bias=bias)
    x = rows_for(linear)
    expected = model(linear, x)
    assert torch.equal(bits(KernelLinear(linear)(x)), bits(expected))
    if num_inputs == 90 and not bias:
        assert (expected[2::4] == 0).any()
        assert (expected[2::4] != 0).any()


@pytest.mark.parametrize(("num_inputs", "num_outputs"), SHAPES[1:])
def test_any_number_of_rows_from_either_end(num_inputs, num_outputs):
    linear = layer(num_inputs, num_outputs)
    x, forward = rows_for(linear), KernelLinear(linear)
    whole = bits(forward(x))
    for num_rows in range(1, MAX_ROWS + 1):
        assert torch.equal(bits(forward(x[:num_rows])), whole[:num_rows])
        assert torch.equal(bits(forward(x[-num_rows:])), whole[-num_rows:])


def test_rows_in_several_stretches():
    linear = layer(90, 70)
    x, forward = rows_for(linear).repeat(9, 1), KernelLinear(linear)
    assert torch.equal(bits(forward(x)), bits(forward(x[:MAX_ROWS])).repeat(9, 1))


@pytest.mark.parametrize("offset", [2, 16, 30])
def test_weights_that_begin_anywhere(offset):
    """They are copied where a tile's rows would lie in two cache lines each."""
    linear, x = layer(64, 64), rows_for(layer(64, 64))
    expected = KernelLinear(linear)(x)
    memory = torch.zeros(64 * 64 + 64, dtype=torch.bfloat16)
    first = (-memory.data_ptr() // 2) % 32 + offset
    weight = memory[first : first + 64 * 64].view(64, 64)
    linear.weight.data = weight.copy_(linear.weight)
    assert linear.weight.data_ptr() % 64 == 2 * offset
    assert torch.equal(bits(KernelLinear(linear)(x)), bits(expected))


def test_neighbours_that_are_not_numbers():
    """What lies behind a row's inputs, or behind the weights, is multiplied by nothing."""
    linear = layer(34, 47, bias=False)
    x = rows_for(linear)
    expected = KernelLinear(linear)(x)
    memory = torch.full((3, MAX_ROWS * 34), torch.nan, dtype=torch.bfloat16)
    memory[1, : x.numel()] = x.flatten()
    weights = torch.full((49 * 34 + 64,), torch.nan, dtype=torch.bfloat16)
    linear.weight.data = weights[: 47 * 34].view(47, 34).copy_(linear.weight)
    assert torch.equal(bits(KernelLinear(linear)(memory[1, : 9 * 34].view(9, 34))), bits(expected[:9]))
    broken = x.clone()
    broken[5] = torch.nan
    found = KernelLinear(linear)(broken)
    assert found[5].isnan().all()
    assert torch.equal(bits(found[torch.arange(MAX_ROWS) != 5]), bits(expected[torch.arange(MAX_ROWS) != 5]))


def test_float32_and_drawing_are_those_of_avx512():
    found = treeshare.native.kernels(torch.float32)
    names = {kernel.__name__ for kernel in vars(found).values()}
    assert names == {
        f"treeshare_{name}_avx512" if name in library._WITHOUT_ELEMENT else f"treeshare_{name}_float32_avx512"
        for name in library._ARGUMENTS
    }
    own = treeshare.native.kernels(torch.bfloat16)
    assert own.treeshare_linear.__name__ == "treeshare_linear_bfloat16_amx"


def test_a_forked_process_has_the_permission():
    linear = layer(90, 33)
    x = rows_for(linear)
    expected = KernelLinear(linear)(x)
    with num_threads(1):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                os.write(write, bytes([torch.equal(KernelLinear(linear)(x), expected)]))
            os._exit(0)
        os.close(write)
        assert os.waitpid(child, 0) == (child, 0)
        assert os.read(read, 1) == b"\1"
        os.close(read)


REFUSED = """
import ctypes, struct, sys

library = ctypes.CDLL(sys.argv[2], mode=ctypes.RTLD_GLOBAL) and ctypes.CDLL(sys.argv[1])
if sys.argv[3] == "refuse":  # arch_prctl, number 158, gives EPERM; all other calls pass
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, 158), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    fields = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(program)))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(fields)), 0, 0) == 0
print({name: library.treeshare_has_level(name.encode()) for name in ("amx", "avx512")})
"""


@pytest.mark.parametrize(("wish", "expected"), [("refuse", 0), ("allow", 1)])
def test_a_system_that_refuses_tiles(wish, expected):
    """As a container's filter of system calls may: the level is not there, and nothing crashes."""
    runtime = str(Path(torch.__file__).parent / "lib" / "libgomp.so.1")
    words = [sys.executable, "-c", REFUSED, library._load().library._name, runtime, wish]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str({"amx": expected, "avx512": 1})


DRIVER = """
#include "amx.h"
#include "bfloat16.h"
#include "tile_linear.h"

extern "C" __attribute__((visibility("default"))) int tiles_in_use() { // of this thread: bit 18 of XINUSE
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
    return low >> 18 & 1;
}
extern "C" __attribute__((visibility("default"))) void leave_tiles() { // one row of one word each
    alignas(64) unsigned char configuration[64] = {1};
    for (int i = 0; i < 8; ++i) configuration[16 + 2 * i] = 4, configuration[48 + i] = 1;
    __asm__ volatile("ldtilecfg %0; tilezero %%tmm0" ::"m"(configuration));
}
"""

LINEAR = "tile_linear.h"
FAULTS = {
    "none": (LINEAR, "", ""),
    "a tile of weights too far to the right": (LINEAR, "panel.tile = DEPTH;", "panel.tile = DEPTH + 2;"),
    "a wrong stride": (LINEAR, "panel.row * sizeof(Element)", "(panel.row + 32) * sizeof(Element)"),
    "no zeros behind the rows": (
        LINEAR,
        "std::fill_n(packed + num_words",
        "if (0) std::fill_n(packed + num_words",
    ),
    "no zeros behind the weights": (LINEAR, "first32(left)", "~0u"),
    "neighbours change places": (LINEAR, "cvtne2ps_pbh(high, low)", "cvtne2ps_pbh(low, high)"),
    "the wrong tile of rows": (LINEAR, "tiles::multiply<3, 5, 7>", "tiles::multiply<3, 5, 6>"),
    "a block that is never finished": (LINEAR, "    }\n    finish(last, stride);", "    }\n"),
    "a bias for every second output": (LINEAR, "panel.bias[2 * i + 1]", "panel.bias[2 * i]"),
    "a thread without its own configuration": ("amx.h", '__asm__ volatile("ldtilecfg %0" ::"m"(whole));', ""),
    "tiles that stay in use": ("amx.h", '__asm__ volatile("tilerelease");', ""),
}
"""By name: the file, what is replaced, and by what."""


def faults_found(built):
    """What is wrong with a build of linear layers on tiles."""
    found = []
    kernel = built.treeshare_linear_bfloat16_amx
    kernel.argtypes, kernel.restype = library._ARGUMENTS["linear"], None
    for num_inputs, num_outputs in SHAPES:
        linear = layer(num_inputs, num_outputs)
        x, out = rows_for(linear), torch.zeros(MAX_ROWS, num_outputs, dtype=torch.bfloat16)
        poison = torch.full((1 << 20,), torch.nan, dtype=torch.bfloat16)
        del poison
        built.leave_tiles()
        weights = weights_of(linear)
        kernel(ctypes.byref(weights), x.data_ptr(), out.data_ptr(), MAX_ROWS)
        if built.tiles_in_use():
            found.append("tiles are in use")
        if not torch.equal(bits(out), bits(model(linear, x))):
            found.append(f"other bits for {num_inputs} x {num_outputs}")
    return found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_source_is_seen(fault, tmp_path):
    """Each in a process of its own: some end it."""
    file, old, new = FAULTS[fault]
    for path in SOURCES.glob("*.h"):
        text = path.read_text()
        if path.name == file:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / path.name).write_text(text)
    (tmp_path / "driver.cpp").write_text(DRIVER)
    words = ["g++", "-O1", "-w", "-fPIC", "-fopenmp", "-c", "driver.cpp", "-o", "driver.o"]
    subprocess.run(words, cwd=tmp_path, check=True)
    subprocess.run(["g++", "-shared", "driver.o", "-o", "driver.so"], cwd=tmp_path, check=True)
    program = f"""
import ctypes, torch
from tests.native import test_tiles
from treeshare.native import library
torch.set_num_threads(1)
assert library._load().library.treeshare_has_level(b"amx")
print(test_tiles.faults_found(ctypes.CDLL({str(tmp_path / "driver.so")!r})))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    is_clean = done.returncode == 0 and done.stdout.strip() == "[]"
    assert is_clean == (fault == "none"), done.stdout + done.stderr
