"""Whether the hub of models and data sets answers, and whether it may be asked."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request

_TIMEOUT_S = 4.0
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def offline_by(variables: tuple[str, ...] = _OFFLINE) -> str | None:
    """The environment variable that says that the hub is not to be asked, if one does."""
    yes = ("1", "ON", "YES", "TRUE")
    return next((name for name in variables if os.environ.get(name, "").upper() in yes), None)


def why_silent() -> str:
    """Why the hub does not answer, or an empty text; returns even if a name server never answers."""
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
