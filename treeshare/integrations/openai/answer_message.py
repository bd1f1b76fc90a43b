"""An assistant's message in an answer: reasoning, content and tool calls, whole or streamed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from treeshare.integrations.openai.tool_calls import Part, ToolCall, ToolCallSplitter
from treeshare.text.reasoning import ReasoningSplitter

if TYPE_CHECKING:
    from collections.abc import Collection

    from treeshare.text.reasoning import ReasoningTags

Delta = dict[str, Any]


class GrowingMessage:
    """Turns a completion's text into the parts of a message.

    Args:
        tags: Around the model's reasoning.
        is_open: Whether the prompt has opened it.
        shows_reasoning: Whether the reasoning is answered.
        tools: Names of the tools that may be called.
        forced: See ``ToolCallSplitter``.
        max_calls: Further calls are left out, as vLLM does; None for any number.
        key: What makes the ids of calls those of this message.
    """

    def __init__(
        self,
        tags: ReasoningTags | None,
        *,
        is_open: bool,
        shows_reasoning: bool = True,
        tools: Collection[str] = (),
        forced: str | None = None,
        max_calls: int | None = None,
        key: str = "",
    ) -> None:
        self._reasoning = ReasoningSplitter(tags, is_open=is_open)
        self._calls = ToolCallSplitter(tools, forced)
        self._shows_reasoning, self._key, self._max_calls = shows_reasoning, key, max_calls
        self.num_calls = 0

    def feed(self, text: str) -> list[Delta]:
        """What has become certain with some more text, as OpenAI's deltas."""
        reasoning, answer = self._reasoning.feed(text)
        return self._deltas(reasoning, self._calls.feed(answer) if answer else [])

    def finish(self) -> list[Delta]:
        """What is left when nothing more comes."""
        reasoning, answer = self._reasoning.finish()
        parts = self._calls.feed(answer) if answer else []
        return self._deltas(reasoning, [*parts, *self._calls.finish()])

    def whole(self, text: str) -> dict[str, Any]:
        """The message of a whole text; what a stream's deltas are together."""
        message: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
        for delta in (*self.feed(text), *self.finish()):
            for name, value in delta.items():
                message[name] = message[name] + value if name in message else value
        if not message["content"] and len(message) > 3:
            message["content"] = None
        for call in message.get("tool_calls", ()):
            call.pop("index")
        return message

    def finish_reason(self, reason: str) -> str:
        """OpenAI's, for an engine's reason."""
        return "tool_calls" if self.num_calls and reason == "stop" else reason

    def _deltas(self, reasoning: str, parts: list[Part]) -> list[Delta]:
        deltas: list[Delta] = []
        if reasoning and self._shows_reasoning:
            deltas.append({"reasoning": reasoning, "reasoning_content": reasoning})
        for part in parts:
            if not isinstance(part, ToolCall):
                deltas.append({"content": part})
            elif self._max_calls is None or self.num_calls < self._max_calls:
                deltas.append({"tool_calls": [self._call(part)]})
        return deltas

    def _call(self, call: ToolCall) -> dict[str, Any]:
        digest = hashlib.sha256(f"{self._key} {self.num_calls}".encode()).hexdigest()[:24]
        shown = {
            "index": self.num_calls,
            "id": f"call_{digest}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        self.num_calls += 1
        return shown
