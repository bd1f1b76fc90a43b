"""Constraints on a completion's text: vLLM's ``StructuredOutputsParams``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from treeshare.errors import ConfigError, one_line
from treeshare.vllm_names import answer_others, others_of, refuse_others

MAX_CHARS = 120_000
"""Maximum number of characters of a schema, pattern, list of choices or grammar; OpenAI's of schemas.

A schema of so many takes about three seconds to become a grammar.
"""

MAX_NESTING = 64
"""Maximum depth of objects and lists in a schema, vLLM's."""

KINDS = ("json", "regex", "choice", "grammar", "json_object")
"""Of which exactly one is given."""


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """A constraint on a completion's text; the completion ends when the text is complete.

    Give exactly one of the first five.

    Attributes:
        json: The text is JSON that fits this JSON schema, given as a mapping or as text.
        regex: This regular expression matches the whole text.
        choice: The text is one of these.
        grammar: The text belongs to this grammar, in Lark or GBNF.
        json_object: True: the text is any JSON object.
        disable_any_whitespace: No spaces and line breaks next to JSON's punctuation.
        disable_additional_properties: Objects whose schema lists properties have no other ones, unless the
            schema allows them explicitly.
        whitespace_pattern: The white space allowed next to JSON's punctuation, as a regular expression; by
            default one space, or a line break with at most 20 characters of indentation.

    Raises:
        ConfigError: If a value is of the wrong type, or none or several of the five are given.
    """

    json: Mapping[str, Any] | str | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        if self.json_object is False:
            object.__setattr__(self, "json_object", None)
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            got = ", ".join(given) or "none"
            raise ConfigError.of("structured_outputs", got=got, expected=f"exactly one of {', '.join(KINDS)}")
        self._check_types()
        if self.choice is not None:
            self._check_choice()
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        size = max(len(str(getattr(self, name) or "")) for name in (*KINDS, "whitespace_pattern"))
        if size > MAX_CHARS:
            raise _refusal(given[0], f"{size:,} characters", f"at most {MAX_CHARS:,}")
        if any(_has_surrogate(getattr(self, name)) for name in (*KINDS, "whitespace_pattern")):
            raise _refusal(given[0], "a lone surrogate", "text without lone surrogates")

    @classmethod
    def of(cls, value: object) -> StructuredOutputsParams | None:
        """The parameters, also where they are given as a mapping; None for None.

        Raises:
            ConfigError: If they are something else, or a name is unknown.
        """
        if value is None or isinstance(value, cls):
            return value
        own = frozenset(field.name for field in fields(cls))
        if not isinstance(value, Mapping):
            expected = "StructuredOutputsParams, or a mapping with its names"
            raise ConfigError.of("structured_outputs", got=value, expected=expected)
        unknown = next((n for n in value if n not in own | others_of(cls.__name__)), None)
        if unknown is not None:
            known = ", ".join(field.name for field in fields(cls))
            raise ConfigError.of("structured_outputs", got=unknown, expected=f"names of {known}")
        try:
            refuse_others(cls.__name__, {n: given for n, given in value.items() if n not in own}, own)
        except ConfigError as error:
            raise ConfigError(f"structured_outputs: {error}") from None
        return cls(**{n: given for n, given in value.items() if n in own and given is not None})

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, ready for JSON; ``of`` reads it."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, (value, default) in values.items()
            if value != default
        }

    @property
    def kind(self) -> str:
        """Which of ``KINDS`` is given."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    def _check_types(self) -> None:
        for name in ("disable_any_whitespace", "disable_additional_properties", "json_object"):
            if not isinstance(getattr(self, name), (bool, type(None))):
                raise _refusal(name, getattr(self, name), "True or False")
        for name in ("regex", "grammar", "whitespace_pattern"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise _refusal(name, value, "text that is not empty")

    def _check_choice(self) -> None:
        choice = self.choice
        is_list = isinstance(choice, Sequence) and not isinstance(choice, (str, bytes))
        if not is_list or not choice or not all(isinstance(text, str) and text for text in choice):
            raise _refusal("choice", choice, "a list of texts that are not empty, at least one")
        object.__setattr__(self, "choice", tuple(dict.fromkeys(choice)))


answer_others(StructuredOutputsParams)


def _refusal(name: str, got: object, expected: str) -> ConfigError:
    return ConfigError.of(f"structured_outputs: {name}", got=got, expected=expected)


def _has_surrogate(value: object) -> bool:
    texts = value if isinstance(value, tuple) else (value,)
    return any(isinstance(text, str) and any("\ud800" <= c <= "\udfff" for c in text) for text in texts)


def _schema_text(value: object) -> str:
    """A JSON schema as text; the order of its properties is kept."""
    expected = "a JSON schema: an object, or its text"
    try:
        if isinstance(value, str):
            if len(value) > MAX_CHARS:
                raise _refusal("json", f"{len(value):,} characters", f"at most {MAX_CHARS:,}")
            schema = json.loads(value)
        else:
            schema = dict(value) if isinstance(value, Mapping) else value
        if not isinstance(schema, dict) or _depth(schema) > MAX_NESTING:
            got = "nested too deeply" if isinstance(schema, dict) else value
            raise _refusal("json", got, f"{expected}, at most {MAX_NESTING} levels deep")
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except ConfigError:
        raise
    except RecursionError as error:
        raise _refusal("json", "nested too deeply", f"at most {MAX_NESTING} levels") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"structured_outputs: json: {one_line(error)}; expected {expected}") from error


def _depth(schema: object) -> int:
    """Levels of objects and lists; stops counting above ``MAX_NESTING``."""
    level: list[Any] = [schema]
    depth = 0
    while level and depth <= MAX_NESTING:
        inner = [item for item in level if isinstance(item, (Mapping, list, tuple))]
        depth += bool(inner)
        level = [part for item in inner for part in (item.values() if isinstance(item, Mapping) else item)]
    return depth
