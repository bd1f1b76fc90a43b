"""The hub of data sets: asked once whether it answers; where it does not, only what is cached is looked at.

Its library tries again for half a minute, and says so on stderr each time.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import TYPE_CHECKING

from treeshare.hub_state import why_silent

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    return why_silent()


@contextlib.contextmanager
def _offline(place: object) -> Iterator[None]:
    before = getattr(place, "HF_HUB_OFFLINE", False)
    setattr(place, "HF_HUB_OFFLINE", True)  # noqa: B010  (a module, whose attribute mypy does not know)
    try:
        yield
    finally:
        setattr(place, "HF_HUB_OFFLINE", before)  # noqa: B010
