"""The forms in which prompts may be given, and their tokens."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from treeshare.engine.chat import ChatOptions, Conversations, Message, conversations_of, render_chat
from treeshare.errors import ConfigError, one_line
from treeshare.text import encode
from treeshare.tree import PromptTree
from treeshare.vllm_names import others_of, refuse_others

Prompt = str | Mapping[str, Any] | Sequence[int]
Prompts = Prompt | Sequence[Prompt]

_OWN_NAMES = frozenset({"prompt", "prompt_token_ids"})
_FORMS = 'text, {"prompt": ...}, {"prompt_token_ids": ...} or token ids'

_REPLY_MARK = "-[[treeshare: the reply goes on here]]-"

_LOG = logging.getLogger(__name__)

ParsedPrompt = tuple[str | None, list[int]]
"""A prompt's text, if it has one, and its token ids."""


class TextPrompt(TypedDict):
    """A prompt as text; vLLM's name for the mapping."""

    prompt: str


class TokensPrompt(TypedDict, total=False):
    """A prompt as token ids, perhaps with the text that they are; vLLM's name for the mapping."""

    prompt_token_ids: Sequence[int]
    prompt: str


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
                f"tokenizer: {self._model_id} has none; give prompt_token_ids, without stop strings"
            )
        return self._tokenizer

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of a whole prompt, with the special tokens that the tokenizer adds, or without.

        Raises:
            ConfigError: If the model came without a tokenizer, or the text is none that it can encode.
        """
        require_text("prompt", text)
        ids = encode(self.require_tokenizer(), text, special_tokens=special_tokens)
        self._added.look_at(text, ids)
        return ids

    def parse_all(self, prompts: Prompts | None) -> list[ParsedPrompt]:
        """One prompt or several, each as ``parse`` returns it; raises as that, also for None."""
        if prompts is None:
            raise ConfigError.of("prompts", got=None, expected=_FORMS)
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
            others = {name: value for name, value in prompt.items() if name not in _OWN_NAMES}
            if len(others) < len(prompt) or others.keys() & others_of("prompt"):
                try:
                    refuse_others("prompt", others, _OWN_NAMES)
                except ConfigError as error:
                    raise ConfigError(f"prompts[{index}]: {error}") from None
            if "prompt_token_ids" in prompt:
                if text is not None:
                    require_text(f"prompts[{index}]", text)
                return text, token_ids_of(index, prompt["prompt_token_ids"])
            if isinstance(text, str):
                return text, self.encode(text)
        elif isinstance(prompt, Iterable) and not isinstance(prompt, (bytes, bytearray, memoryview)):
            return None, token_ids_of(index, prompt)
        raise ConfigError.of(
            f"prompts[{index}]",
            got=prompt,
            expected=_FORMS,
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

    def begun_reply(self, conversation: Sequence[Message], begin: str, options: ChatOptions) -> list[int]:
        """Token ids of a conversation, up to where a reply that begins with ``begin`` continues.

        The template writes the reply with a mark after ``begin`` and is cut there, as in EvalPlus: what it
        puts before a reply stands there, and what it strips from the end of one does not matter.

        Raises:
            ConfigError: As ``chat_prompts``; or if the template does not write the reply.
        """
        reply = {"role": "assistant", "content": f"{begin}{_REPLY_MARK}"}
        text = render_chat(
            self.require_tokenizer(),
            [*conversation, reply],
            replace(options, add_generation_prompt=False),
            model_id=self._model_id,
        )
        before, mark, _ = text.partition(_REPLY_MARK)
        if not mark:
            raise ConfigError("messages: the model's chat template drops the beginning of the reply")
        return self.encode(before, special_tokens=False)


def require_text(name: str, text: object) -> None:
    """Raise ``ConfigError`` unless ``text`` is text that has an encoding: no half of a surrogate pair."""
    if not isinstance(text, str):
        raise ConfigError.of(name, got=type(text).__name__, expected="text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise ConfigError.of(name, got=got, expected="text without lone surrogates") from error


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
    is_one = bool(items) and (isinstance(items[0], int) or _has_no_axes(items[0]))
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
