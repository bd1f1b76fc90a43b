"""The levels of compiled kernels that this CPU has: which there are, and using one."""

from __future__ import annotations

import contextlib

import pytest
import torch

from treeshare.native import PORTABLE, int8_kernels, kernel_level, kernel_levels, kernels, level_code, library

LEVELS = tuple(dict.fromkeys(level_code(level) for level in kernel_levels()[:-1]))
"""Those with code of their own, best first, without ``none``."""

PORTABLE_CODES = tuple(code for code in library._SAME_BITS if library._has_level(code) == 1)
"""Those that serve level portable here, fastest first."""

WIDENING_LEVELS = tuple(level for level in LEVELS if level in ("avx512f", "avx2"))
"""Those that compute bfloat16 in float32: in the same order, so that all their bits are the same."""

_NO_LEVEL = pytest.mark.skip(reason="no compiled kernels are built for this CPU")

LEVEL_PARAMS = LEVELS or [pytest.param("none", marks=_NO_LEVEL)]
"""For tests that need one."""

AGREEING_LEVELS = [*LEVEL_PARAMS[:1], *(pytest.param(level, marks=pytest.mark.slow) for level in LEVELS[1:])]
"""For what all levels compute to the same bits, as ``tests/native/test_levels.py`` proves: one will do."""


def is_twin(level, dtype):
    """Whether a level that stands before gives the same bits, as ``tests/native/test_levels.py`` proves."""
    before = LEVELS[: LEVELS.index(level)] if level in LEVELS else ()
    if dtype == "float32":
        return bool(before)
    return dtype == "bfloat16" and level in WIDENING_LEVELS and WIDENING_LEVELS[0] in before


LEVELS_AND_DTYPES = [
    pytest.param(level, dtype, marks=[pytest.mark.slow] * is_twin(level, dtype), id=f"{dtype}-{level}")
    for level in LEVELS
    for dtype in ("bfloat16", "float32")
] or [
    pytest.param(
        "none", "float32", marks=pytest.mark.skip(reason="no compiled kernels are built for this CPU")
    )
]
"""For tests that take long at each level: those whose bits another one has are slow."""

ENGINE_LEVELS_AND_DTYPES = [
    pytest.param(
        *case.values,
        marks=[*case.marks, *[pytest.mark.slow] * (case.values[0] not in LEVEL_PARAMS[:1])],
        id=case.id,
    )
    for case in LEVELS_AND_DTYPES
]
"""For tests of whole engines, whose kernels are checked at each level elsewhere: the best level's by default,
and the others' when there is time."""


@contextlib.contextmanager
def using_kernels(level):
    """What is made inside uses the kernels of ``level``, chosen as a user would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TREESHARE_KERNELS", level)
        _forget()
        try:
            yield
        finally:
            _forget()


@contextlib.contextmanager
def portable_by(code):
    """Level portable, served by the kernels of ``code``, as on a CPU that has none that are faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "_SAME_BITS", (code,))
        with using_kernels(PORTABLE):
            yield


@contextlib.contextmanager
def num_threads(number):
    """What runs inside is shared out to ``number`` threads, by torch and by the compiled kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _forget():
    kernels.cache_clear()
    int8_kernels.cache_clear()
    kernel_level.cache_clear()
