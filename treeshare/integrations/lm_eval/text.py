"""Texts to token ids and back, by the rules of lm-eval's ``hf`` model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lm_eval.models.utils import has_bos_prefix, postprocess_generated_text

from treeshare.engine.chat import ChatOptions, check_template_kwargs, render_chat
from treeshare.engine.prompts import AddedTokens
from treeshare.errors import ConfigError
from treeshare.integrations.lm_eval.stopping import HarnessStop
from treeshare.text import encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Messages = list[dict[str, str]]

_LOG = logging.getLogger(__name__)


class TextRules:
    """How a model's tokenizer is used: special tokens, conversations, what is cut from an answer.

    Args:
        tokenizer: The model's.
        model_id: The model's name, for messages.
        add_bos_token: Whether to put a beginning-of-sequence token in front; else as the tokenizer does.
        prefix_token_id: The context of an empty text; by default beginning-of-sequence, else end-of-sequence.
        think_end_token: What comes before it, text or a token id, is cut from answers.
        chat_template_args: Arguments of the chat template.
        truncation: Whether the tokenizer first cuts contexts to its own maximum, at its own side.
    """

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401
        model_id: str,
        *,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        think_end_token: str | int | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        truncation: bool = False,
    ) -> None:
        self._truncation = truncation
        self._tokenizer, self._model_id = tokenizer, model_id
        self._add_bos_token = add_bos_token
        self._prefix_token_id = prefix_token_id
        self._think_end_token = think_end_token
        check_template_kwargs(chat_template_args)
        self._chat_template_args = dict(chat_template_args or {})
        self._added = AddedTokens(tokenizer, model_id)

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end-of-sequence token.

        Raises:
            ConfigError: If it has none.
        """
        token: int | None = self._tokenizer.eos_token_id
        if token is None:
            raise ConfigError(f"tokenizer: {self._model_id} has no end-of-sequence token")
        return token

    @property
    def eot_text(self) -> str:
        """The end-of-sequence token as text, with which a task may end an answer."""
        text: str = self._tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        return text

    @property
    def prefix_token_id(self) -> int:
        """The context of what has none."""
        if self._prefix_token_id is not None:
            return self._prefix_token_id
        bos: int | None = self._tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def name(self) -> str:
        """Under which lm-eval caches requests that have gone through the chat template."""
        return str(self._tokenizer.name_or_path or self._model_id).replace("/", "__")

    @property
    def enables_thinking(self) -> bool:
        """Whether the chat template is made to think before it answers."""
        return bool(self._chat_template_args.get("enable_thinking"))

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids; special tokens as the tokenizer does, but none before a text that begins with one."""
        if add_special_tokens is None and has_bos_prefix(text, self._tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        return self._encode(text, add_special_tokens)

    def encode_context(self, text: str, max_tokens: int) -> list[int]:
        """Token ids of a text to continue from, cut on the left to ``max_tokens``."""
        special_tokens = False if has_bos_prefix(text, self._tokenizer.bos_token) else None
        ids = self._encode(text, special_tokens)
        if self._truncation and len(ids) > self._tokenizer.model_max_length:
            choice = self._add_bos_token if special_tokens is None else special_tokens
            ids = self._tokenizer(text, truncation=True, add_special_tokens=choice is not False)["input_ids"]
        if len(ids) > max_tokens:
            _LOG.warning("A context of %d tokens is truncated on the left to %d.", len(ids), max_tokens)
        return ids[-max_tokens:]

    def _encode(self, text: str, add_special_tokens: bool | None) -> list[int]:
        choice = self._add_bos_token if add_special_tokens is None else add_special_tokens
        ids = encode(self._tokenizer, text, special_tokens=choice is not False)
        self._added.look_at(text, ids)
        return ids

    def render_chat(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """The prompt of a conversation; without its system message where the template refuses one.

        Raises:
            ConfigError: If the model has no chat template, or it refuses the other messages.
        """
        options = ChatOptions(
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            chat_template_kwargs=self._chat_template_args,
        )
        try:
            return render_chat(self._tokenizer, messages, options, model_id=self._model_id)
        except ConfigError:
            others = [message for message in messages if message["role"] != "system"]
            if len(others) == len(messages):
                raise
            text = render_chat(self._tokenizer, others, options, model_id=self._model_id)
            _LOG.warning("The chat template rejects a system message; it is left out.")
            return text

    def stop(self, until: list[str]) -> HarnessStop:
        """What ends an answer."""
        return HarnessStop(self._tokenizer, until)

    def decode_answer(self, token_ids: Sequence[int], until: list[str]) -> str:
        """An answer's text without its stop string and what was thought before."""
        end = self._think_end_token
        ids = list(token_ids)
        if isinstance(end, int) and end in ids:
            ids = ids[len(ids) - ids[::-1].index(end) :]
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        if isinstance(end, int):
            text = text.lstrip()
        cut: str = postprocess_generated_text(text, until, end if isinstance(end, str) else None)
        return cut
