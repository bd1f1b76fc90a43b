"""Every way of drawing, for the tests that ask for it."""

from __future__ import annotations

import pytest

from tests.kernel_levels import LEVELS, using_kernels


@pytest.fixture(params=[*LEVELS, "none"], scope="module")
def each_way_of_drawing(request):
    """Every way of drawing rows without penalties: compiled kernels, and torch."""
    with using_kernels(request.param):
        yield
