"""Tool calls in a reply's text.

JSON in ``<tool_call>`` tags (Hermes, Qwen), after ``[TOOL_CALLS]`` (Mistral), or bare (Llama 3). What is no
whole call stays text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treeshare.files import parse_json

if TYPE_CHECKING:
    from collections.abc import Collection

_OPEN, _CLOSE, _LIST, _PYTHON = "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"
_NAMED = re.compile(r"\s*+([\w.-]{1,200})\s*+(?:\[ARGS\]\s*+)?(?=\{)")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call.

    Attributes:
        name: Of the tool.
        arguments: A JSON object, as text.
    """

    name: str
    arguments: str


Part = str | ToolCall


class ToolCallSplitter:
    """Splits an answer into text and calls as it grows.

    Blanks around calls are left out. A bare call is taken for one if the answer begins with it and it names
    one of ``names``; a call in tags may name anything.

    Args:
        names: Of the tools; none: all is text.
        forced: ``tool_choice``: a tool's name, where the whole answer is its arguments; ``required``, where
            it is a list of calls; None for ``auto``.
    """

    def __init__(self, names: Collection[str], forced: str | None = None) -> None:
        self._names, self._forced = frozenset(names), forced
        self._held = self._blanks = ""
        self._mark: str | None = "" if names else None  # what the held text stands after; None: text
        self._has_calls = False

    def feed(self, text: str) -> list[Part]:
        """What has become certain with some more text."""
        if not self._names:
            return [text] if text else []
        self._held += text
        if self._mark == "":
            begun = self._held.lstrip()
            marks = (_OPEN, _LIST)
            is_tagged = begun.startswith(marks)
            if not begun or (not is_tagged and any(mark.startswith(begun) for mark in (*marks, _PYTHON))):
                return []
            if self._forced or (not is_tagged and begun.startswith(("{", "[", _PYTHON))):
                return []
            self._mark = None
        parts: list[Part] = []
        while self._step(parts):
            pass
        return self._without_blanks(parts)

    def finish(self) -> list[Part]:
        """What is left when nothing more comes."""
        held, mark = self._held, self._mark
        self._held, self._mark = "", None
        calls: list[ToolCall] | None = None
        if mark is not None:
            body = held[len(mark) :]
            if mark == _OPEN:
                calls = _calls_in([body])
            elif mark == _LIST:
                calls = _listed(body)
            elif self._names:
                calls = self._bare(held)
        parts = self._without_blanks([*calls] if calls else [held] if held else [])
        if self._blanks and not self._has_calls:
            parts.append(self._blanks)
        return parts

    def _step(self, parts: list[Part]) -> bool:
        """Take the next text or call; returns whether there may be more."""
        held = self._held
        if self._mark is None:
            places = [place for place in (held.find(_OPEN), held.find(_LIST)) if place >= 0]
            if places:
                place = min(places)
                self._mark = _OPEN if held.startswith(_OPEN, place) else _LIST
                parts.append(held[:place])
                self._held = held[place:]
                return True
            kept = max(_overlap(held, _OPEN), _overlap(held, _LIST))
            parts.append(held[: len(held) - kept])
            self._held = held[len(held) - kept :]
            return False
        if self._mark == _LIST or (end := held.find(_CLOSE)) < 0:
            return False
        calls = _calls_in([held[len(_OPEN) : end]])
        whole = held[: end + len(_CLOSE)]
        parts += calls or [whole]
        self._held, self._mark = held[len(whole) :], None
        return True

    def _without_blanks(self, parts: list[Part]) -> list[Part]:
        """Hold blanks back until it is known whether a call follows."""
        kept: list[Part] = []
        for part in parts:
            if isinstance(part, ToolCall):
                self._blanks, self._has_calls = "", True
                kept.append(part)
                continue
            text = self._blanks + part
            shown = text.rstrip()
            self._blanks = text[len(shown) :]
            if shown:
                kept.append(shown)
        return kept

    def _bare(self, text: str) -> list[ToolCall] | None:
        """The calls that a whole answer is."""
        if self._forced and self._forced != "required":
            calls = _calls_in([json.dumps({"name": self._forced, "arguments": text})])
            return calls
        body = text.strip().removeprefix(_PYTHON)
        calls = _listed(body) if body.lstrip().startswith("[") else _calls_in(_objects(body))
        return calls if calls and all(call.name in self._names for call in calls) else None


def _objects(text: str) -> list[str]:
    """JSON objects with blanks or semicolons between them; of something else, all of it."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while place < len(text):
        if text[place] in " \t\r\n;":
            place += 1
            continue
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return [text]
        found.append(text[place:end])
        place = end
    return found


def _listed(text: str) -> list[ToolCall] | None:
    """A JSON list of calls, or a name with its arguments after."""
    if found := _NAMED.match(text):
        return _calls_in([json.dumps({"name": found[1], "arguments": text[found.end() :]})])
    values = _parsed(text)
    values = [values] if isinstance(values, dict) else values
    if not isinstance(values, list) or not values:
        return None
    return _calls_in([json.dumps(value) for value in values])


def _calls_in(texts: list[str]) -> list[ToolCall] | None:
    """A call for each text; None unless all are calls."""
    calls = []
    for text in texts:
        value = _parsed(text)
        if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        arguments = _parsed(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(arguments, dict):
            return None
        try:  # half a character, or a number too large for a float, has no place in an answer
            written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
            (value["name"] + written).encode()
        except ValueError:
            return None
        calls.append(ToolCall(value["name"], written))
    return calls or None


def _parsed(text: str) -> Any:  # noqa: ANN401
    """A JSON value; None if the text is none."""
    try:
        return parse_json(text.strip().encode())
    except (ValueError, RecursionError):
        return None


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``mark``."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


def schema_of(tools: list[dict[str, Any]], forced: str, *, parallel: bool = True) -> dict[str, Any]:
    """The JSON schema of an answer that must be calls: one tool's arguments, or a list of calls.

    Args:
        tools: In OpenAI's form.
        forced: The name of one, or ``required``.
        parallel: Whether the list may have several.
    """
    parameters = {
        tool["function"]["name"]: tool["function"].get("parameters") or {"type": "object"} for tool in tools
    }
    if forced != "required":
        return parameters[forced]
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "parameters": schema},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for name, schema in parameters.items()
    ]
    most = {} if parallel else {"maxItems": 1}
    return {"type": "array", "minItems": 1, **most, "items": {"anyOf": calls}}
