"""The OpenMP library that torch runs on, which the compiled kernels share: two would compete for the cores.

The kernels call gcc's entry points (``GOMP_parallel`` and its like) and are linked against no OpenMP library.
gcc's own, libgomp, has them, and so have clang's libomp and Intel's libiomp5. Wheels of torch bring one under
a name of their own, distributions link the system's: it is found through torch itself.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

_ENTRY = "GOMP_parallel"


def share_runtime() -> str | None:
    """Let libraries that are loaded later use torch's OpenMP library; why not, None where they can."""
    try:
        entry = getattr(
            ctypes.CDLL(torch._C.__file__), _ENTRY
        )  # a search through all that torch is linked to
    except (AttributeError, OSError):
        return f"torch is linked to no OpenMP library that has {_ENTRY}, on whose threads they run"
    path = _file_at(ctypes.cast(entry, ctypes.c_void_p).value or 0)
    if path is None:
        return f"{_ENTRY}, which torch calls, is in no file that /proc/self/maps names"
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    return None


def competing_runtime() -> str | None:
    """The OpenMP library that global symbols lead to, where torch runs on another; None where it is torch's.

    It is asked, not looked up: another one may have come first, by ``LD_PRELOAD`` or from another package,
    and then torch runs on it or not, depending on when it came.
    """
    process, before = ctypes.CDLL(None), torch.get_num_threads()
    try:
        entry, set_num_threads = getattr(process, _ENTRY), process.omp_set_num_threads
    except AttributeError:
        return "none"
    other = before - 1 or 2
    set_num_threads(other)
    is_torchs = torch.get_num_threads() == other
    set_num_threads(before)
    return None if is_torchs else _file_at(ctypes.cast(entry, ctypes.c_void_p).value or 0) or "unknown"


def _file_at(address: int) -> str | None:
    """The file that is mapped at an address of this process."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split(maxsplit=5)
        first, last = (int(word, 16) for word in words[0].split("-"))
        if first <= address < last:
            return words[5] if len(words) == 6 else None
    return None
