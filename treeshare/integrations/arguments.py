"""Arguments that harnesses pass on to the engine."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
