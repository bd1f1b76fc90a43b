"""Arguments that harnesses pass on to the engine."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from treeshare.engine.llm import LLM

ENGINE_ARGUMENTS = (
    "dtype",
    "quantization",
    "seed",
    "max_num_seqs",
    "kv_budget_bytes",
    "max_model_len",
    "threads",
    "backend",
    "sharing",
    "lazy_divergence",
)
"""Those that go to ``LLM`` as they are."""


def check_known(names: Iterable[str], own: Sequence[str]) -> None:
    """Refuse arguments that are not the engine's.

    Args:
        names: What is left when a harness's adapter has taken its own.
        own: The adapter's own, for the message.

    Raises:
        ConfigError: If one is unknown; the message names the known ones and the nearest.
    """
    known = (*own, *ENGINE_ARGUMENTS)
    for name in names:
        if name not in ENGINE_ARGUMENTS:
            near = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else ""
            expected = "one of " + ", ".join(known)
            raise ConfigError.of("model argument", got=name, expected=expected, remedy=remedy)


def check_for_workers(llm: LLM) -> None:
    """Refuse what other processes cannot make anew.

    Raises:
        ConfigError: If the model is in memory, or there are logits processors: without them workers would
            draw other tokens.
    """
    if llm.loaded.is_in_memory or not llm.loaded.extras.is_files:
        raise ConfigError("model: got one in memory, expected files: Ray's workers load it anew")
    if llm.engine.has_processors:
        raise ConfigError("logits_processors: got some, expected none: Ray's workers have none")
