"""Loads the compiled kernels, which the package's installation builds if there is a C++ compiler.

They know nothing of Python or torch: their callers hand over addresses. They run on torch's own OpenMP
threads, by torch's own OpenMP library, which is why it is made visible to them first.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch

_VERSION = 7
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
    """The library; None where it was not built or this CPU lacks AVX-512 BF16."""
    spec = importlib.util.find_spec("treeshare.native._kernels")
    runtime = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    if spec is None or spec.origin is None or not runtime.is_file():
        return None
    ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(spec.origin)
    if library.treeshare_version() != _VERSION or not library.treeshare_supported():
        return None
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library
