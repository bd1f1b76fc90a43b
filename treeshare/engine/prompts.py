"""The forms in which prompts may be given, and their tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from treeshare.engine.chat import ChatOptions, Conversations, Message, conversations_of, render_chat
from treeshare.errors import ConfigError, one_line
from treeshare.tree import PromptTree

Prompt = str | Mapping[str, Any] | Sequence[int]
Prompts = Prompt | Sequence[Prompt]

_LOG = logging.getLogger(__name__)

ParsedPrompt = tuple[str | None, list[int]]
"""A prompt's text, if it has one, and its token ids."""


class AddedTokens:
    """Warns, once each, of special tokens around prompts that models have rarely seen there.

    The tokens stay: transformers and vLLM leave them, too, and a prompt's tokens are transformers' own.

    Args:
        tokenizer: Of the prompts, or None.
        model_id: The model's name.
    """

    def __init__(self, tokenizer: Any | None, model_id: str) -> None:  # noqa: ANN401
        self._begin: int | None = getattr(tokenizer, "bos_token_id", None)
        self._end: int | None = getattr(tokenizer, "eos_token_id", None)
        self._end_text = str(getattr(tokenizer, "eos_token", None) or "")
        self._model_id = model_id
        self._warned: set[str] = set()

    def look_at(self, text: str, ids: Sequence[int]) -> None:
        """Look at a prompt that was tokenised."""
        if self._begin is not None and list(ids[:2]) == [self._begin] * 2:
            self._warn("begin with the begin-of-sequence token twice: leave it out of the text")
        is_added = not (self._end_text and text.endswith(self._end_text))
        if self._end is not None and len(ids) > 1 and ids[-1] == self._end and is_added:
            self._warn(
                "end with the end-of-sequence token, which the tokenizer adds: give token ids without it"
            )

    def _warn(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            _LOG.warning("%s: prompts %s", one_line(self._model_id), what)


class PromptEncoder:
    """Turns prompts of every form into token ids.

    Args:
        tokenizer: The model's, or None.
        model_id: The model's name, for messages.
    """

    def __init__(self, tokenizer: Any | None, model_id: str) -> None:  # noqa: ANN401
        self._tokenizer, self._model_id = tokenizer, model_id
        self._added = AddedTokens(tokenizer, model_id)

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
        """Token ids of a whole prompt, with the special tokens that the tokenizer adds, or without."""
        ids = list(self.require_tokenizer()(text, add_special_tokens=special_tokens)["input_ids"])
        self._added.look_at(text, ids)
        return ids

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
        elif isinstance(prompt, (Sequence, np.ndarray)):
            return None, token_ids_of(index, prompt)
        raise ConfigError.of(
            f"prompts[{index}]",
            got=prompt,
            expected='text, {"prompt": ...}, {"prompt_token_ids": ...} or token ids',
        )

    def chat_prompts(self, messages: Conversations, options: ChatOptions) -> list[Prompt]:
        """A prompt for each conversation, by the model's chat template or the one given.

        Raises:
            ConfigError: If the model has no tokenizer, or as ``render_chat``.
        """
        return [self.chat_prompt(conversation, options) for conversation in conversations_of(messages)]

    def chat_prompt(self, conversation: Sequence[Message], options: ChatOptions) -> dict[str, Any]:
        """The prompt of one conversation, text and tokens; special tokens are those that the template writes.

        Raises as ``chat_prompts``.
        """
        text = render_chat(self.require_tokenizer(), conversation, options, model_id=self._model_id)
        return {"prompt": text, "prompt_token_ids": self.encode(text, special_tokens=False)}


def as_list(prompts: Prompts) -> list[Prompt]:
    """``prompts`` as a list, also where a single prompt was given."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    items: list[Any] = list(prompts)
    return [items] if items and isinstance(items[0], (int, np.integer)) else items


def token_ids_of(index: int, ids: Any) -> list[int]:  # noqa: ANN401
    """The ``index``-th prompt's tokens as a list.

    Raises:
        ConfigError: If they are not a flat list of integers, or an integer is out of range.
    """
    if not all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in ids):
        raise ConfigError.of(
            f"prompts[{index}]", got=type(ids).__name__, expected="a flat list of integer token ids"
        )
    if any(abs(int(i)) >= 1 << 31 for i in ids):
        raise ConfigError.of(f"prompts[{index}]", got=max(map(int, ids), key=abs), expected="token ids")
    return [int(i) for i in ids]


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
