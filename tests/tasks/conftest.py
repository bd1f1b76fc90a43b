"""The development data, where it is at hand, and a sandbox."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from treeshare.errors import SandboxUnavailableError
from treeshare.evals.sandbox import default_sandbox

SHARED = Path(os.environ.get("TREESHARE_SHARED", Path(__file__).parents[3] / "shared")) / "data"


@pytest.fixture(scope="session")
def shared():
    """``shared("mbpp/mbpp.jsonl")``: that file; the test is skipped where it is missing."""

    def find(name):
        path = SHARED / name
        if not path.is_file():
            pytest.skip(f"development data is missing: {path}; set TREESHARE_SHARED")
        return path

    return find


@pytest.fixture(scope="session")
def sandbox():
    """A sandbox that really isolates."""
    try:
        found = default_sandbox()
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    yield found
    found.close()
