"""One judge for all tests of a process, so that sympy is imported once."""

from __future__ import annotations

import pytest

from treeshare.evals.math_judge import MathJudge


@pytest.fixture(scope="session")
def judge():
    with MathJudge() as found:
        yield found
