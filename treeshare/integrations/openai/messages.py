"""A conversation's messages and tools in OpenAI's form."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from treeshare.engine.chat import content_text


class Fields(BaseModel):
    """What has these fields and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _content(value: object) -> object:
    """A message's text, also where it is given in parts."""
    return content_text(value) if isinstance(value, list) and value else value


def chosen_tool(value: object) -> str:
    """A ``tool_choice``: ``none``, ``auto``, ``required``, or after a space the name of a tool."""
    if value in ("none", "auto", "required"):
        return str(value)
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        expected = '{"type": "function", "function": {"name": ...}}'
        raise ValueError(f"expected none, auto, required or {expected}")
    return f" {name}"


class CalledFunction(Fields):
    """A tool that was called, with a JSON object of arguments, also as text."""

    name: str = Field(min_length=1)
    arguments: str | dict[str, Any] = "{}"


class Call(Fields):
    """A call of a tool."""

    type: Literal["function"] = "function"
    id: str | None = None
    index: int | None = None
    function: CalledFunction


class Function(Fields):
    """What a tool does, and the JSON schema of its arguments."""

    name: str = Field(min_length=1, max_length=200)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Fields):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class Message(Fields):
    """A message of a conversation.

    Attributes:
        role: Who speaks.
        content: Text, or parts of text; an assistant's may be missing.
        name: Handed to the chat template.
        reasoning_content: What the assistant had thought; likewise.
        reasoning: The same, by vLLM's newer name.
        tool_calls: What the assistant had called.
        tool_call_id: Of the call that a tool's message answers.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_content)] = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
