"""Sandboxes for model-written code."""

from treeshare.evals.sandbox.base import Call, Execution, Limits, OutsideTests, Sandbox, SandboxError, Verdict
from treeshare.evals.sandbox.bubblewrap import BubblewrapSandbox
from treeshare.evals.sandbox.detect import BACKENDS, default_sandbox, working_sandbox
from treeshare.evals.sandbox.interpreter import PACKAGES
from treeshare.evals.sandbox.landlock import LandlockSandbox

__all__ = [
    "BACKENDS",
    "PACKAGES",
    "BubblewrapSandbox",
    "Call",
    "Execution",
    "LandlockSandbox",
    "Limits",
    "OutsideTests",
    "Sandbox",
    "SandboxError",
    "Verdict",
    "default_sandbox",
    "working_sandbox",
]
