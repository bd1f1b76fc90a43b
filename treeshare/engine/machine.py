"""Measurements of this machine, cached for the user."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pydantic import ValidationError

from treeshare.devices import cpu_name
from treeshare.models import cache_dir
from treeshare.native import kernel_level, level_code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import TypeAdapter


_T = TypeVar("_T")


def cached(kind: str, key: Mapping[str, Any], adapter: TypeAdapter[_T], measure: Callable[[], _T]) -> _T:
    """What was measured before under the same circumstances, or else what is measured now.

    If the cache cannot be read or written, no error is raised: the next call measures again.

    Args:
        kind: The folder, below the user's cache.
        key: What the value depends on beside the machine, its threads, torch and the kernels.
        adapter: Reads and writes the value as JSON.
        measure: Measures the value.
    """
    path = cache_dir() / kind / f"{_digest(key)}.json"
    try:
        return adapter.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        value = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(adapter.dump_json(value))
        partial.replace(path)
    except OSError:
        pass
    return value


def _digest(key: Mapping[str, Any]) -> str:
    """A hash of ``key`` and of what else a measurement depends on."""
    circumstances = {
        **key,
        "threads": torch.get_num_threads(),
        "machine": [platform.machine(), platform.processor(), cpu_name(), os.cpu_count()],
        "kernels": level_code(kernel_level()),
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(circumstances, sort_keys=True, default=str).encode()).hexdigest()[:24]
