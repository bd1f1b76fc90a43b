"""Loads the compiled kernels, which the package's installation builds if there is a C++ compiler.

They know nothing of Python or torch: their callers hand over addresses. They run on torch's own OpenMP
threads, by torch's own OpenMP library, which is why it is made visible to them first.

The library holds every kernel once for each level of instructions; the best that this CPU has is taken,
unless ``TREESHARE_KERNELS`` names one.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from treeshare.errors import ConfigError

VARIABLE = "TREESHARE_KERNELS"
"""The environment variable that names a level: ``none`` for torch's matmuls, ``auto`` or empty for the best
that is there."""

_LEVELS = ("none", "avx2", "avx512")
"""By their numbers in ``levels.cpp``: AVX2 with FMA; AVX-512 with BF16."""

_VERSION = 8
"""Of the functions' arguments; a library built from other sources is not used."""

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

_ARGUMENTS = {
    "treeshare_attend": (_POINTER, _POINTER, _FLOAT, _POINTER, _POINTER),
    "treeshare_before_attention": (_POINTER, _POINTER),
    "treeshare_after_attention": (_POINTER, _POINTER),
    "treeshare_rms_norm": (_POINTER, _POINTER, _POINTER, _INT, _INT, _FLOAT),
    "treeshare_add_rms_norm": (_POINTER, _POINTER, _POINTER, _POINTER, _INT, _INT, _FLOAT),
    "treeshare_rotate": (_POINTER, _POINTER, _POINTER, _INT, _INT, _INT, _INT),
    "treeshare_silu_mul": (_POINTER, _POINTER, _INT, _INT),
    "treeshare_linear": (_POINTER, _POINTER, _POINTER, _INT),
    "treeshare_draw": (_POINTER,),
}


@functools.cache
def kernels() -> Any | None:  # noqa: ANN401
    """The kernels of ``kernel_level()`` by their names, such as ``treeshare_attend``; None without any."""
    level = kernel_level()
    if level == "none":
        return None
    functions = {}
    for name, arguments in _ARGUMENTS.items():
        function = functions[name] = getattr(_library(), f"{name}_{level}")
        function.argtypes, function.restype = arguments, None
    return SimpleNamespace(**functions)


@functools.cache
def kernel_level() -> str:
    """Which kernels are used: ``avx512``, ``avx2`` or ``none``.

    Raises:
        ConfigError: If ``TREESHARE_KERNELS`` names no level, or one that was not built or this CPU lacks.
    """
    wanted, levels = os.environ.get(VARIABLE) or "auto", kernel_levels()
    if wanted not in ("auto", *_LEVELS):
        raise ConfigError.of(VARIABLE, got=wanted, expected=f"one of auto, {', '.join(reversed(_LEVELS))}")
    if wanted not in ("auto", *levels):
        reason = "this CPU has" if len(levels) > 1 else "was built and this CPU has"
        raise ConfigError.of(
            VARIABLE, got=wanted, expected=f"a level that {reason}: {', '.join(levels)}", remedy="take auto"
        )
    return levels[0] if wanted == "auto" else wanted


def kernel_levels() -> tuple[str, ...]:
    """The levels that were built and this CPU has, best first; the last is ``none``."""
    library = _library()
    best = 0 if library is None else library.treeshare_level()
    return _LEVELS[best::-1]


@functools.cache
def _library() -> Any | None:  # noqa: ANN401
    """The library as it was built; None if it was not, or from other sources, or for another OpenMP."""
    spec = importlib.util.find_spec("treeshare.native._kernels")
    runtime = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    if spec is None or spec.origin is None or not runtime.is_file():
        return None
    ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError:  # clang's code asks for an OpenMP library of its own, and two would fight for the cores
        return None
    return library if library.treeshare_version() == _VERSION else None
