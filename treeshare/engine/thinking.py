"""A completion's reasoning while it is generated: its budget, and the grammar that starts after it.

Where a sequence is in its reasoning is a function of its prompt and tokens, so completions that agree share
it, and other requests change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from treeshare.errors import ConfigError
from treeshare.sampling.masks import mask_of, mask_without
from treeshare.text import encode
from treeshare.text.reasoning import opens_reasoning, reasoning_tags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.models import LoadedModel
    from treeshare.sampling import SamplingParams
    from treeshare.sampling.masks import Mask
    from treeshare.text import Detokenizer

_TAIL_TOKENS = 24
"""Tokens of a prompt's end that are decoded to find a start tag."""


class Reasoning:
    """The tags of a model's reasoning.

    Args:
        loaded: The model.
        parser: See ``text.reasoning.reasoning_tags``.

    Attributes:
        tags: Around the reasoning; None: the model marks none.
    """

    def __init__(self, loaded: LoadedModel, parser: str) -> None:
        self._loaded = loaded
        self.vocab_size = loaded.vocab_size
        self.tags = reasoning_tags(parser, loaded.tokenizer)

    @property
    def detokenizer(self) -> Detokenizer:
        """The model's."""
        assert self._loaded.detokenizer is not None
        return self._loaded.detokenizer

    @cached_property
    def start_ids(self) -> list[int]:
        """The tokens of the start tag."""
        return self._ids("start")

    @cached_property
    def end_ids(self) -> list[int]:
        """The tokens of the end tag, which are forced when a budget is used up."""
        return self._ids("end")

    def _ids(self, which: str) -> list[int]:
        assert self.tags is not None
        return encode(self._loaded.tokenizer, getattr(self.tags, which), special_tokens=False)

    def check(self, params: SamplingParams) -> None:
        """Reject a budget if the model has no reasoning tags.

        Raises:
            ConfigError: If so.
        """
        if params.thinking_token_budget is None:
            return
        if self.tags is None or self._loaded.tokenizer is None or not self.end_ids:
            raise ConfigError.of(
                "thinking_token_budget",
                got=params.thinking_token_budget,
                expected="None: the model has no known reasoning tags",
                remedy="give the tags around its reasoning as reasoning_parser",
            )

    def opens(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends inside the reasoning: after a start tag, or in a reply that was begun.

        A start tag of one token counts as long as neither an end tag nor another special token is after it.
        """
        if self.tags is None or self._loaded.tokenizer is None:
            return False
        if opens_reasoning(self._decode(prompt[-_TAIL_TOKENS:]), self.tags):
            return True
        if len(self.start_ids) != 1:
            return False
        special = self.detokenizer.special_ids | frozenset(self.end_ids if len(self.end_ids) == 1 else ())
        for i in range(len(prompt) - 1, -1, -1):
            if prompt[i] == self.start_ids[0]:
                return self.tags.end not in self._decode(prompt[i:])
            if prompt[i] in special:
                return False
        return False

    def start(self, params: SamplingParams, *, is_open: bool) -> ThinkingState | None:
        """Before the first token; None where nothing depends on the reasoning."""
        has_grammar = params.structured_outputs is not None
        if self.tags is None or (params.thinking_token_budget is None and not has_grammar):
            return None
        return ThinkingState(self, params.thinking_token_budget, has_grammar, is_open, not is_open)

    @cached_property
    def without_end(self) -> Mask:
        """All tokens but those that end a completion."""
        return mask_without(self.vocab_size, self._loaded.eos_token_ids)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.detokenizer.decode(list(token_ids), skip_special_tokens=False)


@dataclass(frozen=True, slots=True)
class ThinkingState:
    """Where a sequence is in its reasoning.

    Attributes:
        reasoning: Of the model.
        budget: Tokens between the tags; None for any number.
        has_grammar: Whether a grammar waits for the end: then the completion does not end before.
        is_open: Whether the sequence is inside its reasoning.
        may_begin: Whether its next tokens may be the start tag.
        num_tokens: Tokens inside so far.
        num_forced: Tokens of the end tag that were forced.
        tail: The last characters, in which a tag may have begun.
    """

    reasoning: Reasoning
    budget: int | None
    has_grammar: bool
    is_open: bool
    may_begin: bool
    num_tokens: int = 0
    num_forced: int = 0
    tail: str = ""

    def mask(self, grammar: Mask | None) -> tuple[Mask | None, bool]:
        """The tokens that may come next, of ``grammar``'s or others, and whether the choice is forced."""
        size = self.reasoning.vocab_size
        if self.is_open:
            if self.budget is not None and self.num_tokens >= self.budget:
                return mask_of(size, [self.reasoning.end_ids[self.num_forced]]), True
            return (self.reasoning.without_end if self.has_grammar else None), False
        if grammar is not None and self._offers_start:
            return grammar | mask_of(size, self.reasoning.start_ids), False
        return grammar, False

    @property
    def _offers_start(self) -> bool:
        """Whether the model may begin to reason where a grammar is to begin: by a tag of one token."""
        return self.may_begin and len(self.reasoning.start_ids) == 1

    def takes(self, token: int) -> bool:
        """Whether a token is the reasoning's, tags included, and none of the grammar's."""
        return self.is_open or (self._offers_start and token == self.reasoning.start_ids[0])

    def advance(self, token: int) -> ThinkingState:
        """After one more token."""
        if not self.is_open and not self.may_begin:
            return self
        tags = self.reasoning.tags
        assert tags is not None
        if self.has_grammar and not self.is_open and not self.takes(token):
            return replace(self, may_begin=False)
        text = self.tail + self.reasoning.detokenizer.token_text(token)
        if not self.is_open:
            begun = text.lstrip()
            if begun.startswith(tags.start):
                return replace(self, is_open=True, may_begin=False, tail=begun[len(tags.start) :])
            return replace(self, may_begin=tags.start.startswith(begun), tail=begun)
        is_forced = self.budget is not None and self.num_tokens >= self.budget
        num_forced = self.num_forced + is_forced
        if tags.end in text or num_forced == len(self.reasoning.end_ids):
            return replace(self, is_open=False, num_forced=num_forced, tail="")
        tail = text[-len(tags.end) :]
        return replace(self, num_tokens=self.num_tokens + 1 - is_forced, num_forced=num_forced, tail=tail)
