"""``LoRARequest``: vLLM's way to name an adapter in a call; here one holds for all calls of a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from treeshare.errors import ConfigError
from treeshare.vllm_names import answer_others


@dataclass(frozen=True)
class LoRARequest:
    """A PEFT adapter; vLLM's names.

    Attributes:
        lora_name: What the user calls it.
        lora_int_id: At least 1; told apart by it in vLLM, by the folder here.
        lora_path: Its folder.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str | os.PathLike[str]


answer_others(LoRARequest)


LoRARequests = LoRARequest | Sequence[LoRARequest | None] | None
"""One for all prompts, or one for each."""


def adapter_of(requests: object) -> str | None:
    """The folder of the one adapter that all prompts of a call ask for; None if none is asked for.

    Raises:
        ConfigError: If they ask for several, or some of them for none.
    """
    listed = list(requests) if isinstance(requests, list | tuple) else [requests]
    paths = {None if one is None else _path(one) for one in listed}
    if len(paths) > 1:
        raise ConfigError.of(
            "lora_request",
            got=f"{len(paths)} for the prompts of a call",
            expected="the same for all",
            remedy="load an LLM for each adapter",
        )
    return paths.pop() if paths else None


def _path(request: object) -> str:
    path = getattr(request, "lora_path", None)
    if not isinstance(path, str | os.PathLike):
        raise ConfigError.of("lora_request", got=request, expected="a LoRARequest, or None")
    return os.path.realpath(path)
