"""The results of comparing transformers' causal language models with treeshare.

The list is written by ``scripts/model_table.py``, together with ``docs/models.md``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

KNOWN_MODELS = "known_models.json"


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A line of the list.

    Attributes:
        name: A configuration's ``model_type``, perhaps with a variant after a comma.
        verdict: ``equal``, ``refused``, or ``not built`` where transformers makes no small model of it.
        reason: Why, where it is not equal.
        features: What its attention asks for, where it is.
    """

    name: str
    verdict: str
    reason: str = ""
    features: str = ""


def known_models() -> list[KnownModel]:
    """The list, in the order of names."""
    text = (resources.files("treeshare.models") / KNOWN_MODELS).read_text(encoding="utf-8")
    return [KnownModel(**entry) for entry in json.loads(text)]
