"""Tasks by name, and your own tasks."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from treeshare.errors import ConfigError
from treeshare.evals.problem import Task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

_TASKS = {
    "apps": "treeshare.tasks.apps:Apps",
    "apps-introductory": "treeshare.tasks.apps:AppsIntroductory",
    "apps-interview": "treeshare.tasks.apps:AppsInterview",
    "apps-competition": "treeshare.tasks.apps:AppsCompetition",
    "code-contests": "treeshare.tasks.code_contests:CodeContests",
    "aime-2024": "treeshare.tasks.aime:Aime2024",
    "aime-2025": "treeshare.tasks.aime:Aime2025",
    "amc-2023": "treeshare.tasks.amc:Amc2023",
    "cruxeval-output": "treeshare.tasks.cruxeval:CruxEvalOutput",
    "cruxeval-output-cot": "treeshare.tasks.cruxeval:CruxEvalOutputCot",
    "gsm8k": "treeshare.tasks.gsm8k:Gsm8k",
    "humaneval": "treeshare.tasks.humaneval:HumanEval",
    "humaneval-plus": "treeshare.tasks.humaneval_plus:HumanEvalPlus",
    "livecodebench": "treeshare.tasks.livecodebench:LiveCodeBench",
    "math-500": "treeshare.tasks.math500:Math500",
    "mbpp-plus": "treeshare.tasks.mbpp_plus:MbppPlus",
    "mbpp": "treeshare.tasks.mbpp:Mbpp",
    "mbpp-test": "treeshare.tasks.mbpp:MbppTest",
    "mbpp-sanitized": "treeshare.tasks.mbpp:MbppSanitized",
    "mbpp-sanitized-test": "treeshare.tasks.mbpp:MbppSanitizedTest",
    "qa": "treeshare.tasks.qa:Qa",
}


def task_names() -> list[str]:
    """The names of the tasks that come with the package."""
    return sorted(_TASKS)


def get_task(name: str, *, own_code: bool = True, options: Mapping[str, str] | None = None) -> Task:
    """The task of a name.

    Args:
        name: One of ``task_names()``; or the user's own task as ``FILE.py:CLASS`` or ``MODULE:CLASS``, which
            runs that code with the user's rights.
        own_code: Whether the user asked for it. False where the name comes from a file, such as a run's
            manifest, that somebody else may have written: only the package's own tasks are given then.
        options: What is chosen of the task: see ``Task.options``.

    Raises:
        ConfigError: If there is none, or it has no such option; the message lists those there are.
    """
    expected = "one of " + ", ".join(task_names()) + "; or your own, FILE.py:CLASS"
    if name in _TASKS:
        module, _, kind = _TASKS[name].partition(":")
        return _made(name, getattr(importlib.import_module(module), kind), options or {})
    where, colon, _ = name.rpartition(":")
    if not colon or not where:
        raise ConfigError.of("--task", got=name, expected=expected)
    if not own_code:
        raise ConfigError(
            f"task: the run was made with {name}, code that runs only if you name it; give --task {name}"
        )
    return _create(name, options or {})


def canonical_name(name: str) -> str:
    """The name as a manifest keeps it: a task's file by its whole path, so that it is found from anywhere."""
    where, _, kind = name.rpartition(":")
    return f"{Path(where).resolve()}:{kind}" if name not in _TASKS and where.endswith(".py") else name


def _made(name: str, kind: type[Task], options: Mapping[str, str]) -> Task:
    unknown = sorted(options.keys() - kind.options.keys())
    if unknown:
        expected = f"one of {', '.join(kind.options)}" if kind.options else f"none: {name} has no options"
        raise ConfigError.of("--task-option", got=unknown[0], expected=expected)
    return kind(**options)


def _create(name: str, options: Mapping[str, str]) -> Task:
    where, _, kind = name.rpartition(":")
    try:
        module = _import_file(where) if where.endswith(".py") else importlib.import_module(where)
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"--task: cannot import {where}: {reason}") from error
    found = getattr(module, kind, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ConfigError.of("--task", got=name, expected=f"a subclass of treeshare.evals.Task called {kind}")
    try:
        task = _made(name, found, options)
    except TypeError as error:
        raise ConfigError(f"--task: cannot create {name}: {error}") from error
    missing = [field for field in ("name", "stop", "max_tokens") if not hasattr(task, field)]
    if missing:
        raise ConfigError(f"--task: {name} does not define its {', '.join(missing)}")
    return task


def _import_file(file: str) -> ModuleType:
    path = Path(file).resolve()
    name = f"treeshare_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pydantic look up a module's names
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
