"""Names of vLLM's interface: those that treeshare has, and what to use instead of the others.

``vllm_names.json`` holds them with vLLM's defaults. An entry without ``instead`` is treeshare's own,
too. Another is taken where its value asks for nothing (``accepts``) and refused by one sentence otherwise.
``elsewhere`` holds names of vLLM's older versions, of transformers and of OpenAI that people write, too.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from treeshare.errors import ConfigError
from treeshare.files import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

ANY = "any"
"""In ``accepts``: every value, because none changes a token here."""


_LABELS = {"SamplingParams": "sampling parameter"}
"""How messages call a name of a class or call; its own name where none is given."""


@functools.cache
def vllm_names() -> dict[str, Any]:
    """``version``, and for each of vLLM's classes and calls its names."""
    text = read_text(Path(__file__).with_name("vllm_names.json"), "vLLM's names", max_bytes=1 << 20)
    names: dict[str, Any] = json.loads(text)
    return names


@functools.cache
def others_of(call: str) -> frozenset[str]:
    """Names of a call, or class, that treeshare does not have and can answer; ``server``: of any request."""
    names = vllm_names()
    known = names.get(call, {}) | names["elsewhere"].get(call, {})
    return frozenset(name for name, entry in known.items() if "instead" in entry)


def refusal(call: str, name: str, value: object) -> str | None:
    """Why a name that treeshare does not have is refused with this value; None where it asks for nothing.

    Args:
        call: A key of ``vllm_names.json``, e.g. ``LLM.chat``.
        name: One of ``others_of``.
        value: What was given for it.

    Raises:
        KeyError: If nobody has such a name, or treeshare has it, too.
    """
    names = vllm_names()
    entry = (names["elsewhere"].get(call, {}) | names.get(call, {}))[name]
    accepts, instead = entry["accepts"], entry["instead"]
    values = value if entry.get("each") and isinstance(value, (list, tuple)) else [value]
    if accepts == ANY or all(any(_is_same(each, accepted) for accepted in accepts) for each in values):
        return None
    return str(
        ConfigError.of(name, got=value, expected=" or ".join(map(repr, accepts)) or "nothing", remedy=instead)
    )


def refuse_others(call: str, others: Mapping[str, object], own: Collection[str]) -> None:
    """Answer keywords that treeshare does not have: nothing happens where all of them ask for nothing.

    Args:
        call: As for ``refusal``.
        others: Keywords that the caller gave and treeshare does not have.
        own: Those that it has, for a hint at a word that is written otherwise.

    Raises:
        ConfigError: If one asks for something, or nobody knows its name.
    """
    for name, value in others.items():
        try:
            reason = refusal(call, name, value)
        except KeyError:
            remedy = hint(name, {*own, *vllm_names()[call]})
            label = _LABELS.get(call, call)
            raise ConfigError.of(label, got=name, expected="a known name", remedy=remedy) from None
        if reason is not None:
            raise ConfigError(reason)


def answer_others(kind: type[Any]) -> None:
    """Let a dataclass be made with vLLM's other names: what asks for nothing is dropped, others are refused.

    Args:
        kind: Changed in place; its name is a key of ``vllm_names.json``.
    """
    fields_only = kind.__init__
    own = frozenset(field.name for field in dataclasses.fields(kind))

    @functools.wraps(fields_only)
    def __init__(self: object, *args: object, **values: object) -> None:
        refuse_others(kind.__name__, {name: value for name, value in values.items() if name not in own}, own)
        values = {name: value for name, value in values.items() if name in own}
        try:
            fields_only(self, *args, **values)
        except TypeError:
            try:
                inspect.signature(fields_only).bind(self, *args, **values)
            except TypeError as error:
                raise ConfigError(f"{kind.__name__}: {error}; give values by their names") from None
            raise

    kind.__init__ = __init__


def absence(call: str, name: str) -> str:
    """What to say of an attribute that treeshare does not have: what to use instead where it is vLLM's.

    Args:
        call: A key of ``vllm_names.json`` whose names are attributes.
        name: The attribute.
    """
    shown = f"{call.rstrip('.')}.{name}" if call != "import" else name
    if name not in others_of(call):
        return f"{call.rstrip('.')!r} object has no attribute {name!r}"
    names = vllm_names()
    entry = (names["elsewhere"].get(call, {}) | names.get(call, {}))[name]
    return f"{shown}: treeshare has none; {entry['instead']}"


class AnsweredAttributes:
    """Answers for attributes that only vLLM's class of this name has."""

    if not TYPE_CHECKING:  # a type checker knows which there are

        def __getattr__(self, name: str) -> Never:
            raise AttributeError(absence(type(self).__name__, name))


def hint(name: str, known: Collection[str]) -> str:
    """What somebody may have meant who wrote an unknown name; empty where nothing is near."""
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else ""


@functools.cache
def own_names(function: Callable[..., object]) -> frozenset[str]:
    """The keywords of a function of treeshare's."""
    return frozenset(inspect.signature(function).parameters) - {"self", "others"}


def _is_same(value: object, accepted: object) -> bool:
    """Whether a value is one of the file's; of an enumeration, which is not imported here, its name is."""
    value = getattr(value, "name", value)
    is_number = not isinstance(value, bool) and isinstance(value, int | float)
    is_alike = type(value) is type(accepted) or (is_number and type(accepted) in (int, float))
    return is_alike and value == accepted
