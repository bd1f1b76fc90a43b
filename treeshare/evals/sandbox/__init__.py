"""Sandboxes for model-written code."""

from treeshare.evals.sandbox.base import Execution, Limits, Sandbox, SandboxError, Verdict
from treeshare.evals.sandbox.bubblewrap import BubblewrapSandbox
from treeshare.evals.sandbox.detect import default_sandbox

__all__ = [
    "BubblewrapSandbox",
    "Execution",
    "Limits",
    "Sandbox",
    "SandboxError",
    "Verdict",
    "default_sandbox",
]
