"""Tasks by name; a task's module is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from treeshare.evals.problem import Task

_TASKS = {"humaneval": "tasks.humaneval:HumanEval"}


def get_task(name: str) -> Task:
    """The task of a name.

    Raises:
        ConfigError: If there is none; the message lists those there are.
    """
    if name not in _TASKS:
        raise ConfigError.of("--task", got=name, expected="one of " + ", ".join(sorted(_TASKS)))
    module, _, kind = _TASKS[name].partition(":")
    task: Task = getattr(importlib.import_module(module), kind)()
    return task
