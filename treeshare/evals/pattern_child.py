"""Searches for patterns: runs in a helper process, never imported by treeshare."""

import re
from typing import Any


def prepare() -> None:
    """Nothing is needed."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Whether the pattern is found in the text, or what is wrong with it."""
    try:
        return {"found": re.search(request["pattern"], request["text"]) is not None}
    except (re.error, RecursionError, OverflowError) as error:
        return {"fault": str(error)}
