"""Every sandbox backend that works on this machine."""

from __future__ import annotations

import pytest

from treeshare.errors import SandboxUnavailableError
from treeshare.evals.sandbox import BACKENDS, working_sandbox


@pytest.fixture(scope="session", params=list(BACKENDS))
def sandbox(request):
    try:
        found = working_sandbox(request.param)
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    yield found
    found.close()


@pytest.fixture(scope="session")
def any_sandbox():
    for name in BACKENDS:
        try:
            found = working_sandbox(name)
        except SandboxUnavailableError:
            continue
        yield found
        found.close()
        return
    pytest.skip("no sandbox works here")
