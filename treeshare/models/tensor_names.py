"""Names of tensors: what trainers put around them, which are there twice, and how a message lists them."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_WRAPPERS = (
    "_orig_mod",  # torch.compile
    "module",  # DistributedDataParallel, DataParallel
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",  # Lightning
)
"""Modules that training puts around others; they have no weights of their own."""

_FRONTS = (*_WRAPPERS, r"base_model\.model", "pretrained_model")
"""What may also stand before every name: PEFT's and TRL's models hold the whole model."""

_FRONT = re.compile(rf"^(?:(?:{'|'.join(_FRONTS)})\.)+")
_INSIDE = re.compile(rf"\.(?:(?:{'|'.join(_WRAPPERS)})\.)+")

ADAPTERS = re.compile(
    r"(^|\.)(lora_|adapter_|ia3_|hada_|lokr_|oft_|vera_|prompt_encoder)|\.base_layer\.|\.modules_to_save\."
)
"""Parts of names that only a model with an adapter beside its weights has."""

_EXPERT = re.compile(r"^(?P<layer>.*\bexperts)\.(?P<index>\d+)\.(?P<part>.+)$")


def shortened(names: Iterable[str], limit: int = 3) -> str:
    """``names`` for a message: in the order of their numbers, the first few, and how many others."""
    ordered = sorted(names, key=_natural)
    rest = len(ordered) - limit
    return ", ".join(ordered[:limit]) + (f" and {rest} others" if rest > 0 else "")


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts ``layers.2`` before ``layers.10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def renamed(name: str) -> str:
    """``name`` without the wrappers of trainers."""
    return _INSIDE.sub(".", _FRONT.sub("", name))


def wrappers(names: Iterable[str]) -> list[str]:
    """The parts of ``names`` that ``renamed`` takes away, each once."""
    found = (match for name in names for part in (_FRONT, _INSIDE) for match in part.finditer(name))
    return list(dict.fromkeys(match.group().lstrip(".") for match in found))


def renames(names: Iterable[str]) -> dict[str, str]:
    """``renamed`` for ``names`` as transformers' ``key_mapping``: patterns, and what takes their place.

    transformers replaces the first match only: the pattern comes as often as it may match in a name.
    """
    times = max((len(_INSIDE.findall(_FRONT.sub("", name))) for name in names), default=0)
    return {_FRONT.pattern: ""} | {_INSIDE.pattern + "(?:)" * i: "." for i in range(times)}


def doubles(names: Iterable[str], base: str) -> list[str]:
    """Names that mean the same weight as another one of ``names``.

    Args:
        names: A checkpoint's.
        base: What stands before the names of the model without its head; transformers takes it away and
            puts it in front as the model needs it.
    """
    meanings = defaultdict(list)
    for name in names:
        plain = renamed(name)
        while base and plain.startswith(f"{base}."):
            plain = plain.removeprefix(f"{base}.")
        meanings[plain].append(name)
    return [name for same in meanings.values() if len(same) > 1 for name in same]


def lost_experts(names: Iterable[str]) -> list[str]:
    """Names of experts' tensors that are not there although those of later experts of the layer are.

    transformers joins the experts of a layer in the order of their numbers: with one lost, others would take
    its place. Without the last the joined tensor has another shape.
    """
    parts: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in names:
        if found := _EXPERT.match(name):
            parts[found["layer"], found["part"]].add(int(found["index"]))
    return [
        f"{layer}.{index}.{part}"
        for (layer, part), there in parts.items()
        for index in sorted(set(range(max(there))) - there)
    ]
