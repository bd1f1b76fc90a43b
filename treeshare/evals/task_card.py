"""What ``treeshare tasks`` says about a task, beside the task's own attributes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TaskCard:
    """Where a task's problems come from.

    Attributes:
        source: The data set's id on the hub.
        size: Problems in it.
        licence: The data's.
        metric: What is reported.
    """

    source: str
    size: int
    licence: str
    metric: str
