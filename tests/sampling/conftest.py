"""Every way of drawing, for the tests that ask for it."""

from __future__ import annotations

import pytest

from tests.kernel_levels import AGREEING_LEVELS, LEVELS, using_kernels


@pytest.fixture(params=[*(AGREEING_LEVELS if LEVELS else []), "none"], scope="module")
def each_way_of_drawing(request):
    """Every way of drawing rows without penalties: compiled kernels, which agree, and torch."""
    with using_kernels(request.param):
        yield
