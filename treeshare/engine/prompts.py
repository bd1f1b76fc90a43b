"""The forms in which prompts may be given, and their tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from treeshare.errors import ConfigError
from treeshare.tree import PromptTree

Prompt = str | Mapping[str, Any] | Sequence[int]
Prompts = Prompt | Sequence[Prompt]
Message = Mapping[str, Any]

ParsedPrompt = tuple[str | None, list[int]]
"""A prompt's text, if it has one, and its token ids."""


class PromptEncoder:
    """Turns prompts of every form into token ids.

    Args:
        tokenizer: The model's, or None.
        model_id: The model's name, for messages.
    """

    def __init__(self, tokenizer: Any | None, model_id: str) -> None:  # noqa: ANN401
        self._tokenizer, self._model_id = tokenizer, model_id

    def require_tokenizer(self) -> Any:  # noqa: ANN401
        """The tokenizer.

        Raises:
            ConfigError: If the model came without one.
        """
        if self._tokenizer is None:
            raise ConfigError(
                f"tokenizer: {self._model_id} has none; give prompt_token_ids, and no stop strings"
            )
        return self._tokenizer

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of a whole prompt, with the special tokens that the tokenizer adds, or without.

        Raises:
            ConfigError: If it is no text that a tokenizer can read, or there is no tokenizer.
        """
        require_text("prompt", text)
        return list(self.require_tokenizer()(text, add_special_tokens=special_tokens)["input_ids"])

    def parse_all(self, prompts: Prompts) -> list[ParsedPrompt]:
        """One prompt or several, each as ``parse`` returns it."""
        return [self.parse(i, prompt) for i, prompt in enumerate(as_list(prompts))]

    def parse(self, index: int, prompt: Prompt) -> ParsedPrompt:
        """The ``index``-th prompt's text, if it has one, and its token ids.

        Raises:
            ConfigError: If it is in no known form.
        """
        if isinstance(prompt, str):
            return prompt, self.encode(prompt)
        if isinstance(prompt, Mapping):
            text = prompt.get("prompt")
            if "prompt_token_ids" in prompt:
                return text, token_ids_of(index, prompt["prompt_token_ids"])
            if isinstance(text, str):
                return text, self.encode(text)
        elif isinstance(prompt, Iterable) and not isinstance(prompt, (bytes, bytearray, memoryview)):
            return None, token_ids_of(index, prompt)
        raise ConfigError.of(
            f"prompts[{index}]",
            got=prompt,
            expected='text, {"prompt": ...}, {"prompt_token_ids": ...} or token ids',
        )

    def chat_prompts(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        chat_template: str | None,
        add_generation_prompt: bool,
    ) -> list[Prompt]:
        """A prompt for each conversation, by the model's chat template or the one given.

        Raises:
            ConfigError: If the model has no tokenizer, or there is no chat template.
        """
        tokenizer = self.require_tokenizer()
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        if chat_template is None and getattr(tokenizer, "chat_template", None) is None:
            raise ConfigError(f"chat_template: {self._model_id} has none; give one, or use generate")
        prompts: list[Prompt] = []
        for conversation in conversations:
            text = tokenizer.apply_chat_template(
                conversation,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                chat_template=chat_template,
            )
            token_ids = self.encode(text, special_tokens=False)
            prompts.append({"prompt": text, "prompt_token_ids": token_ids})
        return prompts


def require_text(name: str, text: object) -> None:
    """Raise ``ConfigError`` unless ``text`` is text that has an encoding: no half of a surrogate pair."""
    if not isinstance(text, str):
        raise ConfigError.of(name, got=type(text).__name__, expected="text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise ConfigError.of(name, got=got, expected="text without halves of characters") from error


def items_of(name: str, values: object, expected: str) -> list[Any]:
    """The items of a list, tuple, array or other iterable.

    Raises:
        ConfigError: If it is none, or is text, bytes or a mapping, whose items nobody means.
    """
    is_other = isinstance(values, (str, bytes, bytearray, memoryview, Mapping))
    if not is_other and isinstance(values, Iterable):
        with contextlib.suppress(Exception):  # an array without axes, an object of somebody's
            return list(values)
    raise ConfigError.of(name, got=type(values).__name__, expected=expected)


def as_list(prompts: Prompts) -> list[Prompt]:
    """``prompts`` as a list, also where a single prompt was given."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    items = items_of("prompts", prompts, "a prompt, or a list of prompts")
    is_one = bool(items) and (isinstance(items[0], (int, np.integer)) or _has_no_axes(items[0]))
    return [items] if is_one else items


def _has_no_axes(item: object) -> bool:
    """Whether an item is a number of a tensor or an array."""
    return getattr(item, "shape", None) == ()


def token_ids_of(index: int, ids: object) -> list[int]:
    """The ``index``-th prompt's tokens as a list.

    Raises:
        ConfigError: If they are not a flat list of integers, or an integer is out of range.
    """
    name, expected = f"prompts[{index}]", "a flat list of integer token ids"
    items = items_of(name, ids, expected)
    if items and _has_no_axes(items[0]):  # an array's, or a tensor's
        items = [item.item() if _has_no_axes(item) else item for item in items]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in items):
        raise ConfigError.of(name, got=type(ids).__name__, expected=expected)
    largest = max(items, key=abs, default=0)
    if abs(largest) >= 1 << 31:
        got = largest if abs(largest) < 1 << 64 else "an integer of more than 64 bits"
        raise ConfigError.of(name, got=got, expected="token ids")
    return items


def shared_tokens(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Per prompt, the leading tokens that an earlier prompt has too."""
    tree = PromptTree.from_prompts(prompts)
    seen: set[int] = set()
    shared = []
    for node_id in tree.prompt_nodes:
        path = tree.path(node_id)
        shared.append(sum(tree.nodes[node].num_tokens for node in path if node in seen))
        seen.update(path)
    return shared
