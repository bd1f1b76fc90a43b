"""``LoRARequest``: vLLM's way to name an adapter in a call; here a model has one adapter for all calls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from treeshare.config import require_int
from treeshare.errors import ConfigError
from treeshare.vllm_names import answer_others


@dataclass(frozen=True)
class LoRARequest:
    """A PEFT adapter; vLLM's names.

    Attributes:
        lora_name: A name of your choice.
        lora_int_id: At least 1. It identifies the adapter in vLLM; here the folder does.
        lora_path: Its folder.

    Raises:
        ConfigError: If a value is something else.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str | os.PathLike[str]

    def __post_init__(self) -> None:
        if not isinstance(self.lora_name, str) or not self.lora_name:
            raise ConfigError.of("lora_name", got=self.lora_name, expected="text that is not empty")
        require_int("lora_int_id", self.lora_int_id, low=1)
        if not isinstance(self.lora_path, str | os.PathLike) or not os.fspath(self.lora_path):
            raise ConfigError.of("lora_path", got=self.lora_path, expected="a folder")


answer_others(LoRARequest)


LoRARequests = LoRARequest | Sequence[LoRARequest | None] | None
"""One for all prompts, or one for each."""


def adapter_of(requests: object, num_prompts: int | None = None) -> str | None:
    """The folder of the one adapter that all prompts of a call ask for; None if none is asked for.

    Args:
        requests: One for all prompts, or one for each.
        num_prompts: How many there are, where that is known.

    Raises:
        ConfigError: If they ask for several, or some of them for none, or are not as many as the prompts.
    """
    is_listed = isinstance(requests, list | tuple)
    listed = list(requests) if is_listed else [requests]  # type: ignore[call-overload]
    if is_listed and num_prompts not in (None, len(listed)):
        got = f"{len(listed)} for {num_prompts} prompts"
        raise ConfigError.of("lora_request", got=got, expected="one, or one for each prompt")
    paths = {None if one is None else _path(one) for one in listed}
    if len(paths) > 1:
        raise ConfigError.of(
            "lora_request",
            got=f"{len(paths)} for the prompts of a call",
            expected="one adapter for all prompts",
            remedy="load an LLM for each adapter",
        )
    return paths.pop() if paths else None


def _path(request: object) -> str:
    path = getattr(request, "lora_path", None)
    if not isinstance(path, str | os.PathLike):
        raise ConfigError.of("lora_request", got=request, expected="a LoRARequest, or None")
    return os.path.realpath(path)
