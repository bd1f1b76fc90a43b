"""The OpenMP library that the kernels run on is torch's, under whatever name it comes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernel_levels import LEVELS
from treeshare.native import library, openmp

needs_kernels = pytest.mark.skipif(not LEVELS, reason="no kernels, or none for this CPU")
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")


def loaded_files(pattern):
    maps = Path("/proc/self/maps").read_text().split()
    return {word for word in maps if pattern in Path(word).name}


@needs_kernels
def test_kernels_run_on_torchs_threads():
    assert (openmp.share_runtime(), openmp.competing_runtime()) == (None, None)


@needs_kernels
def test_torch_on_another_library_is_noticed(monkeypatch):
    """As where torch is bound to one library and the first global one is another."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    file = openmp.competing_runtime()
    assert file in loaded_files("omp")
    loaded = library._load.__wrapped__()
    assert loaded.library is None
    assert (
        loaded.reason
        == f"torch runs on another OpenMP library than {file}, and the two would compete for the cores"
    )
    assert "LD_PRELOAD" in loaded.remedy


def linked_to(folder, code, *flags):
    """A library made of ``code``."""
    path = folder / f"lib{len(list(folder.iterdir()))}.so"
    words = ["gcc", "-shared", "-fPIC", "-o", path, "-Wl,--no-as-needed", *flags, "-x", "c", "-"]
    subprocess.run(words, input=code, text=True, check=True)
    return path


RUNTIME = "void GOMP_parallel(void) {} int omp_set_num_threads(int n) { return n; }"


NAMES = ["libgomp-24e2ab19.so.1.0.0", "libomp.so", "libiomp5.so", "another näme.so"]

FIND = """
import ctypes, sys, torch
from treeshare.native import openmp
load, files = ctypes.CDLL, []
ctypes.CDLL = lambda path, **options: files.append(path) or load(path, **options)
for torch._C.__file__ in sys.argv[1:]:
    print(openmp.share_runtime(), files[-1])
"""


@needs_gcc
def test_it_is_found_under_any_name(tmp_path):
    """In another process, as a global library stays one: torch's extension is linked to such libraries."""
    extensions = []
    for name in NAMES:
        (tmp_path / name).mkdir()
        runtime = linked_to(tmp_path, RUNTIME, f"-Wl,-soname,{name}").rename(tmp_path / name / name)
        extensions.append(linked_to(tmp_path, "int torch;", str(runtime), f"-Wl,-rpath,{runtime.parent}"))
    words = [sys.executable, "-c", FIND, *extensions]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"None {tmp_path / name / name}" for name in NAMES], done.stderr


@needs_gcc
def test_torch_without_one_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(torch._C, "__file__", str(linked_to(tmp_path, "int torch;")))
    loaded = library._load.__wrapped__()
    assert loaded.library is None
    assert (
        loaded.reason
        == "torch is linked to no OpenMP library that has GOMP_parallel, on whose threads they run"
    )
    assert loaded.remedy == "install PyTorch's own wheel of torch"


def test_a_file_at_an_address():
    address = ctypes.cast(ctypes.CDLL(None).malloc, ctypes.c_void_p).value
    assert openmp._file_at(address) in loaded_files("libc.so")
    assert openmp._file_at(1) is None
