"""The hub of data sets: asked once whether it answers; where it does not, only what is cached is looked at.

Its library tries again for half a minute, and says so on stderr each time.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIMEOUT_S = 4.0


def why_unreachable(timeout_s: float) -> str:
    """Why the hub cannot be reached, or an empty string; returns even if a name server never answers."""
    from huggingface_hub import constants

    reasons = [f"no answer within {timeout_s:g} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout_s):
                reasons.append("")
        except urllib.error.HTTPError as error:
            reasons.append("" if error.code < 500 else f"status {error.code}")
        except (OSError, ValueError) as error:
            reasons.append(str(getattr(error, "reason", error)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return reasons[-1]


@contextlib.contextmanager
def hub_or_cache() -> Iterator[str]:
    """While it lasts, the hub's libraries use the network only if the hub answers; gives why it does not."""
    from huggingface_hub import constants

    reason = "" if constants.HF_HUB_OFFLINE else _reason()
    with contextlib.ExitStack() as stack:
        if reason:
            configuration = getattr(sys.modules.get("datasets"), "config", constants)
            for place in (constants, configuration):
                stack.enter_context(_offline(place))
        yield reason


@functools.cache
def _reason() -> str:
    return why_unreachable(_TIMEOUT_S)


@contextlib.contextmanager
def _offline(place: object) -> Iterator[None]:
    before = getattr(place, "HF_HUB_OFFLINE", False)
    setattr(place, "HF_HUB_OFFLINE", True)  # noqa: B010  (a module, whose attribute mypy does not know)
    try:
        yield
    finally:
        setattr(place, "HF_HUB_OFFLINE", before)  # noqa: B010
