"""Whether the hub of models and data sets answers."""

from __future__ import annotations

import os

from treeshare.cli.finding import Finding
from treeshare.tasks.hub_access import why_unreachable

_TIMEOUT_S = 4.0
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def hub() -> Finding:
    """Whether the hub answers; not asked if the environment says that we are offline."""
    variable = next((name for name in _OFFLINE if _is_set(name)), None)
    if variable is not None:
        found = f"not asked: {variable} is set"
        return Finding(name="hub", found=found, data={"reachable": None, "offline": variable})
    reason = why_unreachable(_TIMEOUT_S)
    return Finding(
        name="hub",
        found="answers" if not reason else f"does not answer ({reason})",
        remedy="" if not reason else "use the embedded model, local models and --data FILE",
        data={"reachable": not reason, "reason": reason},
    )


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
