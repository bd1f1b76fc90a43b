"""Whether the hub of models and data sets answers."""

from __future__ import annotations

from treeshare.cli.finding import Finding
from treeshare.hub_state import offline_by, why_silent

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def hub() -> Finding:
    """Whether the hub answers; not asked if the environment says that we are offline."""
    variable = offline_by(_OFFLINE)
    if variable is not None:
        found = f"not asked: {variable} is set"
        return Finding(name="hub", found=found, data={"reachable": None, "offline": variable})
    reason = why_silent()
    return Finding(
        name="hub",
        found="answers" if not reason else f"does not answer ({reason})",
        remedy="" if not reason else "use the embedded model, local models and --data FILE",
        data={"reachable": not reason, "reason": reason},
    )
