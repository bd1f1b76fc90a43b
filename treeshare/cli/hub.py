"""Whether the hub of models and data sets answers."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request

from treeshare.cli.finding import Finding

_TIMEOUT_S = 4.0
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def hub() -> Finding:
    """Whether the hub answers; not asked if the environment says that we are offline."""
    variable = next((name for name in _OFFLINE if _is_set(name)), None)
    if variable is not None:
        found = f"not asked: {variable} is set"
        return Finding(name="hub", found=found, data={"reachable": None, "offline": variable})
    reason = _reach_hub()
    return Finding(
        name="hub",
        found="answers" if not reason else f"does not answer ({reason})",
        remedy="" if not reason else "use the embedded model, local models and --data FILE",
        data={"reachable": not reason, "reason": reason},
    )


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


def _reach_hub() -> str:
    """Why the hub cannot be reached, or an empty string; returns even if a name server never answers."""
    from huggingface_hub import constants

    reasons = [f"no answer within {_TIMEOUT_S:g} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
                reasons.append("")
        except urllib.error.HTTPError as error:
            reasons.append("" if error.code < 500 else f"status {error.code}")
        except (OSError, ValueError) as error:
            reasons.append(str(getattr(error, "reason", error)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT_S)
    return reasons[-1]
