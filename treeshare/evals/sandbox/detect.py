"""Finds a sandbox that really isolates on this machine, or refuses."""

from __future__ import annotations

from treeshare.errors import SandboxUnavailableError
from treeshare.evals.sandbox.base import Limits, Sandbox, SandboxError, Verdict
from treeshare.evals.sandbox.bubblewrap import INSTALL_HINT, BubblewrapSandbox


def default_sandbox() -> Sandbox:
    """A sandbox, after it has run a trivial program.

    Raises:
        SandboxUnavailableError: If there is no real isolation here; the message says how to get it.
            Model-written code is never run without.
    """
    sandbox = BubblewrapSandbox()
    try:
        probe = sandbox.run("import math", limits=Limits(wall_s=20.0))
    except SandboxError as error:
        raise SandboxUnavailableError(
            f"sandbox: bubblewrap does not work here ({error}); {INSTALL_HINT}, and allow user namespaces"
        ) from error
    if probe.verdict is not Verdict.PASSED:
        raise SandboxUnavailableError(
            f"sandbox: bubblewrap does not run Python here ({probe.verdict}: {probe.detail})"
        )
    return sandbox
