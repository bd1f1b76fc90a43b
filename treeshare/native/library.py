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
import logging
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from treeshare import installation
from treeshare.errors import ConfigError
from treeshare.native import openmp, structs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VARIABLE = "TREESHARE_KERNELS"
"""The environment variable that names a level: ``none`` for torch's matmuls, ``auto`` or empty for the best
available."""

_NONE = "none"

_LOG = logging.getLogger(__name__)


class Level(NamedTuple):
    """A level of instructions as a user names it."""

    name: str
    code: str
    """The level whose kernels serve it: what ends their names. Levels of one code give the same bits."""
    automatic: bool = True
    """Whether it is taken where the user names none. A level that no machine has run yet is not; nor is
    ``portable``, which refuses models."""
    base: str | None = None
    """The level whose kernels serve it in float32, and where the element does not matter; None: ``code``."""
    extension: str | None = None
    """What serves it in bfloat16 instead of ``code`` on a CPU that has it, too: with bits of its own."""
    int8: tuple[str, ...] = ()
    """Codes that may serve it in int8, fastest first: the first that this CPU has does. All give the same
    bits. Empty: any of all levels."""


PORTABLE = "portable"
"""The level whose results are the same bits on every CPU. Any code of ``_SAME_BITS`` serves it."""

_SAME_BITS = ("avx512f", "avx2", "neon", PORTABLE)
"""Codes that give the same bits in every result, fastest first; the last is for a CPU that has no other."""

_NEON = ("neon_i8mm", "neon_dotprod", "neon")

LEVELS = (
    Level("amx", "amx", base="avx512", int8=("amx",)),
    Level("avx512", "avx512", int8=("avx512vnni", "avx512f")),  # with BF16
    Level("avx512vnni", "avx512f", int8=("avx512vnni",)),  # its own instructions are for integers
    Level("avx512f", "avx512f", int8=("avx512f",)),
    Level("avx2", "avx2", int8=("avx2",)),
    Level("neon", "neon", base="neon", extension="neon_bfmmla", int8=_NEON),
    Level(PORTABLE, PORTABLE, automatic=False),
)
"""All levels, best first. A build may have any of them, and so may a CPU: ``levels.cpp`` knows which, and
``instruction_sets.h`` what each needs."""

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

ELEMENTS = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
"""What the kernels compute in: sums are float32. The names of kernels end in these and the level's."""

_ARGUMENTS = {
    "attend": (_POINTER, _POINTER, _FLOAT, _POINTER, _POINTER),
    "linear": (_POINTER, _POINTER, _POINTER, _INT),
    "run": (_POINTER,),
    "experts": (_POINTER,),
    "draw": (_POINTER,),
    "exp": (_POINTER, _INT),
    "sum_blocks": (_POINTER, _POINTER, _INT),
    "log_softmax": (_POINTER, _POINTER, _INT, _INT),
}
"""The argument types of every kernel, as ``native/exports.h`` declares it."""

_INT8_ARGUMENTS = {
    "quantize_rows": (_POINTER, _POINTER, _POINTER, _INT),
    "pack_int8": (_POINTER, _POINTER, _INT, _INT),
    "lookup_int8": (_POINTER, _POINTER, _POINTER, _INT),
    "linear_int8": (_POINTER, _POINTER, _POINTER, _INT),
    "apply_int8": (_POINTER, _POINTER, _POINTER, _INT),
    "multiply_codes": (_POINTER,),
}
"""The same of those that a level has once, in codes of 8 bits."""

_WITHOUT_ELEMENT = frozenset({"draw", "exp", "sum_blocks", "log_softmax"})
"""Kernels that a level has once: they are told what their numbers are."""

_FUNCTIONS = {
    "log": (_POINTER, _POINTER, _INT),
    "cos": (_POINTER, _POINTER, _INT),
    "sin": (_POINTER, _POINTER, _INT),
    "power": (_POINTER, _POINTER, _POINTER, _INT),
}
"""Those of functions that no level has: ``native/numbers.h``."""

_NO_NUMBER = -(1 << 63)
"""Of ``treeshare_number``, for a name that it does not know."""

_LETTERS = {_POINTER: "p", _INT: "i", _FLOAT: "f"}
"""Of argument types, as ``treeshare_arguments`` in ``structs.cpp`` writes them."""


@functools.cache
def kernels(dtype: torch.dtype, level: str | None = None) -> Any | None:  # noqa: ANN401
    """The kernels of a level for elements of ``dtype``, by names such as ``treeshare_attend``.

    None where no kernels are used, or none computes in ``dtype``.

    Args:
        dtype: Of the elements.
        level: One of ``kernel_levels()``: a model may be tied to another than the process; None:
            ``kernel_level()``. Attention, linear layers and layers' programs alone depend on it; the other
            kernels give the same bits on all.
    """
    found, element = _find_level(level or kernel_level()), ELEMENTS.get(dtype)
    if found is None or element is None:
        return None
    base = found.base or level_code(found.name)
    code = level_code(found.name) if dtype == torch.bfloat16 else base
    return _bound(_ARGUMENTS, lambda name: base if name in _WITHOUT_ELEMENT else f"{element}_{code}")


@functools.cache
def int8_kernels() -> Any | None:  # noqa: ANN401
    """The kernels in codes of 8 bits of ``kernel_level()``; None where no kernels are used.

    Their results are the same bytes at every level.
    """
    level = _find_level(kernel_level())
    if level is None:
        return None
    code = int8_code(level.name)
    return _bound(_INT8_ARGUMENTS, lambda name: code)


def _bound(kernels: Mapping[str, tuple[Any, ...]], ending: Callable[[str], str]) -> SimpleNamespace:
    """Kernels of the library, by names without their level, ready to be called.

    Args:
        kernels: Their argument types, by name.
        ending: What a kernel's name ends in there.
    """
    functions = {}
    for name, arguments in kernels.items():
        function = getattr(_load().library, f"treeshare_{name}_{ending(name)}")
        function.argtypes, function.restype = arguments, None
        functions[f"treeshare_{name}"] = function
    return SimpleNamespace(**functions)


@functools.cache
def kernel_level() -> str:
    """Which kernels are used: the name of one of ``LEVELS``, or ``none``.

    Raises:
        ConfigError: If ``TREESHARE_KERNELS`` names no level, or one that was not built or this CPU lacks.
    """
    wanted, available = os.environ.get(VARIABLE) or "auto", kernel_levels()
    if wanted == "auto":
        automatic = {level.name for level in LEVELS if level.automatic and not _is_slow(level.name)}
        return next(name for name in available if name in automatic | {_NONE})
    if wanted not in available:
        raise ConfigError.of(VARIABLE, got=wanted, expected=_expected_levels(), remedy="use auto")
    return wanted


def kernel_levels() -> tuple[str, ...]:
    """The levels that were built and this CPU has, best first; the last is ``none``."""
    return (*(level.name for level in LEVELS if _has_level(level.name) == 1), _NONE)


def level_code(level: str) -> str:
    """The level whose kernels serve one of ``kernel_levels()`` in bfloat16: what its bits are tied to."""
    known = _find_level(level)
    if known is None:
        return _NONE
    if level == PORTABLE:
        return next(code for code in _SAME_BITS if _has_level(code) == 1)
    return known.extension if known.extension and _has_level(known.extension) == 1 else known.code


def int8_codes() -> tuple[str, ...]:
    """What ``int8_kernels`` can be served by here: codes that were built and this CPU has, fastest first."""
    codes = dict.fromkeys(code for level in LEVELS for code in level.int8)
    return tuple(code for code in (*codes, PORTABLE) if _has_level(code) == 1)


def int8_code(level: str) -> str:
    """The code that serves one of ``kernel_levels()`` in int8."""
    known = _find_level(level)
    if known is None:
        return _NONE
    return next(code for code in int8_codes() if not known.int8 or code in known.int8)


def _find_level(name: str) -> Level | None:
    return next((level for level in LEVELS if level.name == name), None)


def _has_level(name: str) -> int:
    """1 where a level was built and this CPU has it, 0 where this CPU lacks it, -1 where it was not built."""
    library = _load().library
    return -1 if library is None else int(library.treeshare_has_level(name.encode()))


def _is_slow(name: str) -> bool:
    """Whether the next level that this CPU has is faster."""
    library = _load().library
    return library is not None and bool(library.treeshare_is_slow_level(name.encode()))


def _expected_levels() -> str:
    """The levels that may be named, and why the others may not, in one line."""
    reasons = []
    for state, reason in ((0, "not on this CPU"), (-1, "not built")):
        names = [level.name for level in LEVELS if _has_level(level.name) == state]
        if names:
            reasons.append(f"{reason}: {', '.join(names)}")
    return f"one of auto, {', '.join(kernel_levels())}" + (f" ({'; '.join(reasons)})" if reasons else "")


def functions() -> Any | None:  # noqa: ANN401
    """The functions that no level has, by names such as ``treeshare_log``; None without a library."""
    library = _load().library
    if library is None:
        return None
    for name, arguments in _FUNCTIONS.items():
        function = getattr(library, f"treeshare_{name}")
        function.argtypes, function.restype = arguments, None
    return library


@functools.cache
def number_of(name: str) -> int:
    """The number that ``native/structs.h`` gives an operation's kind or flag, such as ``RMS_NORM``.

    Raises:
        KeyError: If there is none, or no library.
    """
    library = _load().library
    number = _NO_NUMBER if library is None else library.treeshare_number(name.encode())
    if number == _NO_NUMBER:
        raise KeyError(name)
    return int(number)


def unused_reason() -> str | None:
    """Why the compiled library is not used, such as ``not built``; None if it is used."""
    return _load().reason


def unused_remedy() -> str | None:
    """What would let the compiled library be used; None if it is used."""
    return _load().remedy


@functools.cache
def warn_where_unused() -> None:
    """Log, once in a process, why no compiled kernels are used and what helps, unless the user wants none."""
    if kernel_levels() == (_NONE,) and os.environ.get(VARIABLE) != _NONE:
        _LOG.warning("treeshare: %s", unused_notice())


def unused_notice() -> str:
    """What the user of an installation without kernels, or of a CPU that runs none of them, should know."""
    return (
        f"no compiled kernels ({unused_reason() or 'this CPU runs none of them'}): slower, and last bits may "
        f"depend on what else runs" + (f"; {remedy}" if (remedy := unused_remedy()) else "")
    )


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
        for name, arguments in (_ARGUMENTS | _INT8_ARGUMENTS | _FUNCTIONS).items():
            expected = "".join(_LETTERS[kind] for kind in arguments)
            if describe(name.encode()) != expected.encode():
                return f"{name} takes other arguments there"
        library.treeshare_number.argtypes, library.treeshare_number.restype = (ctypes.c_char_p,), _INT
        library.treeshare_has_level.argtypes = (ctypes.c_char_p,)
    except AttributeError as error:
        return f"it lacks a function ({error})"
    return None
