"""Figures measured on this machine, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pydantic import ValidationError

from treeshare.devices import cpu_name
from treeshare.models.loading import cache_dir
from treeshare.native import kernel_level

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import TypeAdapter


_T = TypeVar("_T")


def remembered(
    kind: str, known: Mapping[str, Any], adapter: TypeAdapter[_T], measure: Callable[[], _T]
) -> _T:
    """What was measured before under the same circumstances, or else what is measured now.

    A cache that cannot be read or written only means that it is measured again next time.

    Args:
        kind: The folder, below the user's cache.
        known: What the figures depend on beside the machine, its threads, torch and the kernels.
        adapter: Reads and writes them as JSON.
        measure: Measures them.
    """
    path = cache_dir() / kind / f"{_digest(known)}.json"
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


def _digest(known: Mapping[str, Any]) -> str:
    circumstances = {
        **known,
        "threads": torch.get_num_threads(),
        "machine": [platform.machine(), platform.processor(), cpu_name(), os.cpu_count()],
        "kernels": kernel_level(),
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(circumstances, sort_keys=True, default=str).encode()).hexdigest()[:24]
