"""Conversations as text: what a chat template is given, and which messages are rejected."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treeshare.errors import ConfigError, one_line

Message = Mapping[str, Any]

Conversations = Sequence[Message] | Sequence[Sequence[Message]]
"""A conversation, or several."""

_OTHER_PARTS = ("image", "video", "audio", "file")
"""What the types of parts that are no text have in their names."""

_MARK = "treeshare-content"

_RESERVED = frozenset({"conversation", "documents", "messages", "tools"})
"""Names that a template gets from elsewhere; with them the arguments of ``apply_chat_template``."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How conversations become prompts; vLLM's names.

    Attributes:
        chat_template: Jinja text, instead of the model's own template.
        add_generation_prompt: End the prompt where the assistant's answer begins.
        continue_final_message: End the prompt inside the last message, for the model to continue with it.
        chat_template_kwargs: What the template asks for beside the messages, such as ``enable_thinking``. A
            name that it does not know changes nothing, as in transformers.
        tools: What the model may call, in OpenAI's form, for templates that show tools.

    Raises:
        ConfigError: If a value is of the wrong type, or values do not go together.
    """

    chat_template: str | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        is_list = isinstance(self.tools, Sequence) and not isinstance(self.tools, (str, bytes))
        if self.tools is not None and not (is_list and all(isinstance(t, Mapping) for t in self.tools)):
            expected = 'a list of {"type": "function", "function": {"name": ...}}'
            raise ConfigError.of("tools", got=self.tools, expected=expected)
        if self.chat_template is not None and not isinstance(self.chat_template, str):
            raise ConfigError.of("chat_template", got=self.chat_template, expected="Jinja text")
        for name in ("add_generation_prompt", "continue_final_message"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError.of(name, got=getattr(self, name), expected="True or False")
        if self.add_generation_prompt and self.continue_final_message:
            raise ConfigError(
                "continue_final_message: got True together with add_generation_prompt, expected one of them"
            )
        check_template_kwargs(self.chat_template_kwargs)


def check_template_kwargs(values: object) -> None:
    """Check ``chat_template_kwargs``.

    Raises:
        ConfigError: If they are no mapping from names, or a name is not the template's but one of
            ``apply_chat_template``'s own.
    """
    if values is None:
        return
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        expected = 'a mapping from names, such as {"enable_thinking": False}'
        raise ConfigError.of("chat_template_kwargs", got=values, expected=expected)
    reserved = sorted(values.keys() & _reserved_names())
    if reserved:
        raise ConfigError.of(
            "chat_template_kwargs",
            got=", ".join(reserved),
            expected="variables of the template",
            remedy="give arguments of apply_chat_template by their own names, if there is such an option",
        )


DEFAULT_CHAT = ChatOptions()


@functools.cache
def _reserved_names() -> frozenset[str]:
    from transformers import PreTrainedTokenizerBase

    return _RESERVED.union(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)


def conversations_of(messages: Conversations) -> Sequence[Sequence[Message]]:
    """One conversation or several as several.

    Raises:
        ConfigError: If it is neither.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        expected = 'a list of {"role": ..., "content": ...}, or a list of such lists'
        raise ConfigError.of("messages", got=messages, expected=expected)
    is_single = bool(messages) and isinstance(messages[0], Mapping)
    return [messages] if is_single else messages  # type: ignore[list-item, return-value]


def render_chat(
    tokenizer: Any,  # noqa: ANN401
    conversation: Sequence[Message],
    options: ChatOptions,
    *,
    model_id: str,
) -> str:
    """The prompt of a conversation, by the model's chat template or the one given.

    Args:
        tokenizer: The model's.
        conversation: Messages with ``role`` and ``content``: text, or parts of text.
        options: How.
        model_id: The model's name, for messages.

    Raises:
        ConfigError: If there is no template, a message is in no known form, or the template refuses them: a
            template is a program of the model's, and may raise anything.
    """
    if options.chat_template is None and getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(f"chat_template: {model_id} has none; give one, or give the prompt as text")
    messages = check_messages(conversation)
    messages = _fitted(messages, tokenizer, options)
    arguments = dict(options.chat_template_kwargs or {})
    if options.tools:
        arguments["tools"] = [dict(tool) for tool in options.tools]
    if options.chat_template is not None:
        arguments["chat_template"] = options.chat_template
    if options.continue_final_message:
        arguments["continue_final_message"] = True
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=options.add_generation_prompt, **arguments
        )
    except Exception as error:
        reason = one_line(" ".join(str(error).split())) or type(error).__name__
        raise ConfigError(f"messages: the model's chat template rejects them: {reason}") from error
    assert isinstance(text, str), "tokenize=False"
    return text


def _fitted(
    messages: list[dict[str, Any]],
    tokenizer: Any,  # noqa: ANN401
    options: ChatOptions,
) -> list[dict[str, Any]]:
    """Messages in the form that the template goes through.

    Raises:
        ConfigError: If it shows no tools, and there are some.
    """
    template = _template(tokenizer, options)
    if options.tools and "tools" not in template:
        raise ConfigError(
            "tools: the model's chat template does not support them; give a chat_template that does"
        )
    if "developer" not in template:
        for message in messages:
            if message["role"] == "developer":  # the newer name of what most templates call system
                message["role"] = "system"
    if _wants_parts(tokenizer, options.chat_template or tokenizer.chat_template):
        messages = [_in_parts(message) for message in messages]
    return messages


def _in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose text is a list of one part."""
    if not isinstance(message.get("content"), str):
        return dict(message)
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _wants_parts(tokenizer: Any, template: object) -> bool:  # noqa: ANN401
    """Whether a template goes through lists of parts alone, as some of multimodal models do.

    Such a template leaves out a content that is a text, and says nothing.
    """
    known = vars(tokenizer).setdefault("_treeshare_wants_parts", {})
    key = str(template)
    if key not in known:
        message = {"role": "user", "content": _MARK}
        known[key] = not _shows(tokenizer, template, message) and _shows(
            tokenizer, template, _in_parts(message)
        )
    return bool(known[key])


def _shows(tokenizer: Any, template: object, message: Mapping[str, Any]) -> bool:  # noqa: ANN401
    """Whether a prompt has its message's text."""
    try:
        text = tokenizer.apply_chat_template(
            [message], tokenize=False, chat_template=template if isinstance(template, str) else None
        )
    except Exception:  # whatever a template raises
        return False
    return _MARK in str(text)


def _template(tokenizer: Any, options: ChatOptions) -> str:  # noqa: ANN401
    """The text of the template that will be applied; of several, all of them."""
    found = options.chat_template or tokenizer.chat_template
    return "".join(found.values()) if isinstance(found, Mapping) else str(found)


def check_messages(conversation: object) -> list[dict[str, Any]]:
    """A conversation as templates take it: each message's content one text.

    Raises:
        ConfigError: If a message is in no known form.
    """
    if isinstance(conversation, (str, bytes, Mapping)) or not isinstance(conversation, Sequence):
        raise ConfigError.of("messages", got=conversation, expected='a list of {"role": ..., "content": ...}')
    messages = []
    for place, message in enumerate(conversation):
        where = f"messages[{place}]"
        if not isinstance(message, Mapping):
            raise ConfigError.of(where, got=message, expected='{"role": ..., "content": ...}')
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise ConfigError.of(f"{where}: role", got=role, expected="text, such as user")
        if content is None and role == "assistant":
            content = ""  # a template would write "None"
        try:
            checked = {**message, "content": content_text(content)}
            if message.get("tool_calls"):
                checked["tool_calls"] = _calls(message["tool_calls"])
            reasoning = _reasoning(message)
            if reasoning is not None:
                checked |= {"reasoning_content": reasoning, "reasoning": reasoning}
            messages.append(checked)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return messages


def _reasoning(message: Message) -> str | None:
    """What an assistant had thought, by either of vLLM's names.

    Raises:
        ConfigError: If it is no text, or the names have different ones.
    """
    given = [message[name] for name in ("reasoning_content", "reasoning") if message.get(name) is not None]
    wrong = next((value for value in given if not isinstance(value, str)), None)
    if wrong is not None:
        raise ConfigError.of("reasoning_content", got=wrong, expected="text")
    if len(set(given)) > 1:
        raise ConfigError.of("reasoning", got=given[1], expected="what reasoning_content has, or nothing")
    return given[0] if given else None


def _calls(calls: object) -> list[dict[str, Any]]:
    """Calls of tools as templates take them: arguments are an object, not its text."""
    expected = 'a list of {"type": "function", "function": {"name": ..., "arguments": ...}}'
    if not isinstance(calls, Sequence) or isinstance(calls, (str, bytes)):
        raise ConfigError.of("tool_calls", got=calls, expected=expected)
    found = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ConfigError.of("tool_calls", got=call, expected=expected)
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(arguments, Mapping):
            raise ConfigError.of(
                "tool_calls: arguments", got=function["arguments"], expected="a JSON object, or its text"
            )
        found.append({**call, "function": {**function, "arguments": arguments}})
    return found


def content_text(content: object) -> str:
    """A message's text; parts of text are joined by newlines, as vLLM does.

    Raises:
        ConfigError: If it is something else, or a part is; the message names its type.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        raise ConfigError.of("content", got=content, expected="text, or a list of parts of text")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and any(other in kind for other in _OTHER_PARTS):
            raise ConfigError(f"content: got the type {kind!r}, expected text; nothing else is supported")
        if kind != "text" or not isinstance(part.get("text"), str) or set(part) > {"type", "text"}:
            expected = 'parts like {"type": "text", "text": ...}'
            raise ConfigError(f"content: got the type {kind!r}, expected {expected}")
        texts.append(part["text"])
    return "\n".join(texts)
