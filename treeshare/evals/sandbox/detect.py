"""Finds a sandbox that really isolates programs on this machine, or raises an error."""

from __future__ import annotations

import sys

from treeshare.errors import SandboxUnavailableError
from treeshare.evals.sandbox.base import Limits, Sandbox, SandboxError, Verdict
from treeshare.evals.sandbox.bubblewrap import BubblewrapSandbox
from treeshare.evals.sandbox.descriptors import missing_features
from treeshare.evals.sandbox.landlock import LandlockSandbox

BACKENDS: dict[str, type[Sandbox]] = {kind.name: kind for kind in (BubblewrapSandbox, LandlockSandbox)}
"""By name, the better ones first."""

_PROBE = """
import os, socket
for forbidden in (os.fork, socket.socket):
    try:
        forbidden()
    except OSError:
        continue
    raise AssertionError(forbidden.__name__)
"""


def _require_linux() -> None:
    """Refuse where no sandbox can work, before the first is tried."""
    missing = missing_features()
    if sys.platform != "linux" or missing:
        lacks = f" without {', '.join(missing)}" if missing else ""
        raise SandboxUnavailableError(
            f"sandbox: no isolation on {sys.platform}{lacks}, and model-written code never runs without it; "
            "evaluate the run directory on Linux, e.g. in a container"
        )


def working_sandbox(name: str) -> Sandbox:
    """The backend of that name, after it has run a program and held it.

    Raises:
        SandboxUnavailableError: If it does not work here; one line that says why.
    """
    _require_linux()
    sandbox = BACKENDS[name]()
    try:
        probe = sandbox.run(_PROBE, limits=Limits(wall_s=20.0))
    except SandboxError as error:
        reason = str(error).removeprefix("sandbox: ")
        raise SandboxUnavailableError(f"sandbox: {name} does not work here: {reason}") from error
    if probe.verdict is not Verdict.PASSED:
        raise SandboxUnavailableError(f"sandbox: {name} is not secure here: {probe.verdict}: {probe.detail}")
    return sandbox


def default_sandbox() -> Sandbox:
    """The best sandbox that works.

    Raises:
        SandboxUnavailableError: If there is no real isolation here; the message says how to get it.
            Model-written code is never run without.
    """
    _require_linux()
    reasons = []
    for name in BACKENDS:
        try:
            return working_sandbox(name)
        except SandboxUnavailableError as error:
            reasons.append(str(error).removeprefix("sandbox: "))
    raise SandboxUnavailableError(
        "sandbox: no isolation here, and model-written code never runs without it: "
        + "; ".join(reasons)
        + "; install bubblewrap (apt-get install bubblewrap) and allow user namespaces"
    )
