"""Loads the compiled kernels, which the package's installation builds if there is a C++ compiler.

They know nothing of Python or torch: their callers hand over addresses. They run on torch's own OpenMP
threads (``openmp.py``).

The library holds every kernel once for each level of instructions; the best level that this CPU has is used,
unless ``TREESHARE_KERNELS`` names another.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from treeshare.errors import ConfigError
from treeshare.native import installation, openmp, structs

VARIABLE = "TREESHARE_KERNELS"
"""The environment variable that names a level: ``none`` for torch's matmuls, ``auto`` or empty for the best
available."""

LEVELS = ("avx512", "avx2")
"""All levels, best first: AVX-512 with BF16; AVX2 with FMA. A CPU may have any of them; ``levels.cpp`` knows
which instructions each needs."""

_NONE = "none"

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

ELEMENTS = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
"""What the kernels compute in: sums are float32. The names of kernels end in these and the level's."""

_ARGUMENTS = {
    "attend": (_POINTER, _POINTER, _FLOAT, _POINTER, _POINTER),
    "before_attention": (_POINTER, _POINTER),
    "after_attention": (_POINTER, _POINTER),
    "rms_norm": (_POINTER, _POINTER, _POINTER, _INT, _INT, _FLOAT),
    "add_rms_norm": (_POINTER, _POINTER, _POINTER, _POINTER, _INT, _INT, _FLOAT),
    "rotate": (_POINTER, _POINTER, _POINTER, _INT, _INT, _INT, _INT),
    "silu_mul": (_POINTER, _POINTER, _INT, _INT),
    "linear": (_POINTER, _POINTER, _POINTER, _INT),
    "draw": (_POINTER,),
}
"""The argument types of every kernel, as ``native/exports.h`` declares it."""

_WITHOUT_ELEMENT = frozenset({"draw"})
"""Kernels that a level has once: they are told what their numbers are."""

_LETTERS = {_POINTER: "p", _INT: "i", _FLOAT: "f"}
"""Of argument types, as ``treeshare_arguments`` in ``structs.cpp`` writes them."""


@functools.cache
def kernels(dtype: torch.dtype) -> Any | None:  # noqa: ANN401
    """The kernels of ``kernel_level()`` for elements of ``dtype``, by names such as ``treeshare_attend``.

    None where no kernels are used, or none computes in ``dtype``.
    """
    level, element = kernel_level(), ELEMENTS.get(dtype)
    if level == _NONE or element is None:
        return None
    functions = {}
    for name, arguments in _ARGUMENTS.items():
        ending = level if name in _WITHOUT_ELEMENT else f"{element}_{level}"
        function = functions[f"treeshare_{name}"] = getattr(_load().library, f"treeshare_{name}_{ending}")
        function.argtypes, function.restype = arguments, None
    return SimpleNamespace(**functions)


@functools.cache
def kernel_level() -> str:
    """Which kernels are used: one of ``LEVELS``, or ``none``.

    Raises:
        ConfigError: If ``TREESHARE_KERNELS`` names no level, or one that was not built or this CPU lacks.
    """
    wanted, levels = os.environ.get(VARIABLE) or "auto", kernel_levels()
    if wanted not in ("auto", *LEVELS, _NONE):
        raise ConfigError.of(VARIABLE, got=wanted, expected=f"one of auto, {', '.join((*LEVELS, _NONE))}")
    if wanted not in ("auto", *levels):
        reason = "this CPU has" if len(levels) > 1 else "was built and this CPU has"
        raise ConfigError.of(
            VARIABLE, got=wanted, expected=f"a level that {reason}: {', '.join(levels)}", remedy="take auto"
        )
    return levels[0] if wanted == "auto" else wanted


def kernel_levels() -> tuple[str, ...]:
    """The levels that were built and this CPU has, best first; the last is ``none``."""
    library = _load().library
    if library is None:
        return (_NONE,)
    return (*(level for level in LEVELS if library.treeshare_has_level(level.encode())), _NONE)


def unused_reason() -> str | None:
    """Why the compiled library is not used, such as ``not built``; None if it is used."""
    return _load().reason


def unused_remedy() -> str | None:
    """What would let the compiled library be used; None if it is used."""
    return _load().remedy


class _Loaded(NamedTuple):
    """The library, or None, the reason why it is not used, and what helps."""

    library: Any | None
    reason: str | None = None
    remedy: str | None = None


@functools.cache
def _load() -> _Loaded:
    """Load the library if it was built from these sources and runs on torch's OpenMP threads."""
    spec = importlib.util.find_spec("treeshare.native._kernels")
    if spec is None or spec.origin is None:
        return _Loaded(None, "not built", installation.how_to_install())
    reason = openmp.share_runtime()
    if reason is not None:
        return _Loaded(None, reason, "install PyTorch's own wheel of torch")
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as error:  # as one that clang built, which calls functions that gcc's OpenMP library lacks
        remedy = f"build it with gcc: CC=gcc CXX=g++ {installation.how_to_install()}"
        return _Loaded(None, f"does not load: {error}", remedy)
    difference = _difference(library)
    if difference is not None:
        return _Loaded(None, f"built from other sources: {difference}", installation.how_to_install())
    other = openmp.competing_runtime()
    if other is not None:
        reason = f"torch runs on another OpenMP library than {other}, and the two would compete for the cores"
        return _Loaded(None, reason, "import treeshare before the package that loads it, or unset LD_PRELOAD")
    return _Loaded(library)


def _difference(library: Any) -> str | None:  # noqa: ANN401
    """How the library's structs and arguments differ from those declared here; None if they are the same."""
    try:
        found = structs.mismatch(library)
        if found is not None:
            return found
        describe = library.treeshare_arguments
        describe.argtypes, describe.restype = (ctypes.c_char_p,), ctypes.c_char_p
        for name, arguments in _ARGUMENTS.items():
            expected = "".join(_LETTERS[kind] for kind in arguments)
            if describe(name.encode()) != expected.encode():
                return f"{name} takes other arguments there"
        library.treeshare_has_level.argtypes = (ctypes.c_char_p,)
    except AttributeError as error:
        return f"it lacks a function ({error})"
    return None
