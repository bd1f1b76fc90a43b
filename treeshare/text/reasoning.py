"""Separates a chat model's reasoning from its answer, by the tags around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from treeshare.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """The texts between which a model writes its reasoning."""

    start: str
    end: str


_THINK = ReasoningTags("<think>", "</think>")

PARSERS = {
    "deepseek_r1": _THINK,
    "qwen3": _THINK,
    "glm45": _THINK,
    "mistral": ReasoningTags("[THINK]", "[/THINK]"),
    "seed_oss": ReasoningTags("<seed:think>", "</seed:think>"),
    "kimi": ReasoningTags("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    "cohere_command": ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),
    "apertus": ReasoningTags("<|inner_prefix|>", "<|inner_suffix|>"),
    "openthinker": ReasoningTags("<|begin_of_thought|>", "<|end_of_thought|>"),
}
"""Tags by the name of a parser, vLLM's where it has one."""

AUTO, NONE = "auto", "none"
"""As the tokenizer and template show; none, for which vLLM writes an empty text."""


def reasoning_tags(parser: str, tokenizer: Any | None) -> ReasoningTags | None:  # noqa: ANN401
    """The tags around a model's reasoning; None if it has none.

    Args:
        parser: ``auto``, the first tags whose end the model's chat template contains, or both of which the
            tokenizer has as added tokens; ``none``, or an empty text; a name in ``PARSERS``; or two tags
            with a space between them.
        tokenizer: The model's.

    Raises:
        ConfigError: If ``parser`` is something else.
    """
    if isinstance(parser, str) and parser in PARSERS:
        return PARSERS[parser]
    if isinstance(parser, str) and parser in (NONE, ""):
        return None
    if parser == AUTO:
        template = getattr(tokenizer, "chat_template", None)
        written = template if isinstance(template, str) else ""
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        own = {str(getattr(token, "content", token)) for token in added}
        for tags in dict.fromkeys(PARSERS.values()):
            if {tags.start, tags.end} <= own or tags.end in written:
                return tags
        return None
    parts = parser.split() if isinstance(parser, str) else []
    if len(parts) != 2 or parts[0] == parts[1]:
        expected = f"{AUTO}, {NONE}, {', '.join(PARSERS)}, or two tags with a space between them"
        raise ConfigError.of("reasoning_parser", got=parser, expected=expected)
    return ReasoningTags(*parts)


class ReasoningSplitter:
    """Splits a reply into reasoning and answer while it is generated.

    Reasoning begins in the prompt if the prompt opened it, or else with a start tag at the beginning of the
    reply, after optional spaces. It ends at the first end tag, or never. The tags belong to neither part;
    later tags are text.

    Args:
        tags: Around the reasoning; None: all is answer.
        is_open: Whether the prompt has opened it.
    """

    def __init__(self, tags: ReasoningTags | None, *, is_open: bool) -> None:
        self._tags = tags
        self._may_begin, self._is_open = tags is not None and not is_open, tags is not None and is_open
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """The reasoning and the answer that some more text makes certain."""
        tags, held = self._tags, self._held + text
        self._held = ""
        reasoning = ""
        if self._may_begin and tags is not None:
            begun = held.lstrip()
            if begun.startswith(tags.start):
                self._may_begin, self._is_open, held = False, True, begun[len(tags.start) :]
            elif tags.start.startswith(begun):
                self._held = held
                return "", ""
            self._may_begin = False
        if self._is_open and tags is not None:
            reasoning, end, held = held.partition(tags.end)
            if not end:
                num_kept = _overlap(reasoning, tags.end)
                self._held = reasoning[len(reasoning) - num_kept :]
                return reasoning[: len(reasoning) - num_kept], ""
            self._is_open = False
        return reasoning, held

    def finish(self) -> tuple[str, str]:
        """What is left when nothing more comes."""
        held, self._held = self._held, ""
        return (held, "") if self._is_open else ("", held)


def split_reasoning(text: str, tags: ReasoningTags | None, *, is_open: bool) -> tuple[str | None, str]:
    """A whole reply's reasoning, None if there is none, and its answer; as ``ReasoningSplitter``."""
    splitter = ReasoningSplitter(tags, is_open=is_open)
    parts = [splitter.feed(text), splitter.finish()]
    return "".join(part[0] for part in parts) or None, "".join(part[1] for part in parts)


def opens_reasoning(prompt: str, tags: ReasoningTags) -> bool:
    """Whether a prompt's text ends after a start tag."""
    return prompt.rstrip().endswith(tags.start)


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``tag``."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
