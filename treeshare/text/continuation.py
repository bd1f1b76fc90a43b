"""A completion's text: what continues its prompt's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from treeshare.text.detokenizer import less

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.text.detokenizer import Detokenizer

_NUM_CONTEXT = 8
"""Tokens of a prompt's end that a completion is decoded after; more where they have no text to speak of."""


@dataclass(frozen=True)
class Context:
    """The end of a prompt, after which a completion is decoded.

    Attributes:
        tokens: Their text is whole characters, unless the prompt ends inside one.
        run: Byte pieces after them that are no whole character, if the prompt ends with such.
        text: Of both together.
    """

    tokens: tuple[int, ...]
    run: tuple[int, ...]
    text: str


class Continuation:
    """The text of a prompt's completions: it continues the prompt's.

    It is ``decode(context + completion)`` less ``decode(context)``, where the context is as much of the
    prompt's end as makes it the same as with the whole prompt. A character whose first bytes the prompt has
    is the completion's if the completion makes it whole.

    Args:
        detokenizer: Of the model.
        prompt_token_ids: The prompt; only its end is read.
        skip_special_tokens: Whether special tokens have no text.
    """

    def __init__(
        self, detokenizer: Detokenizer, prompt_token_ids: Sequence[int], *, skip_special_tokens: bool
    ) -> None:
        self.detokenizer = detokenizer
        self.skip_special_tokens = skip_special_tokens
        self._prompt = prompt_token_ids
        self._unseen = detokenizer.unseen(skip_special_tokens=skip_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens that nothing stands before."""
        return self.detokenizer.decode(token_ids, skip_special_tokens=self.skip_special_tokens)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of a completion; costs one decoding of all its tokens."""
        context = self.context
        return less(self.decode([*context.tokens, *context.run, *token_ids]), context.text)

    def adds_nothing(self, token: int) -> bool:
        """Whether the decoder never sees a token."""
        return self._unseen[token]

    def hidden_in(self, texts: Sequence[str]) -> dict[int, str]:
        """See ``Detokenizer.hidden_in``."""
        return self.detokenizer.hidden_in(tuple(texts), skip_special_tokens=self.skip_special_tokens)

    @property
    def begins_text(self) -> bool:
        """Whether no text stands before a completion: the prompt has only special tokens, left out."""
        return not (self.context.tokens or self.context.run)

    @cached_property
    def context(self) -> Context:
        """The prompt's end.

        Byte pieces at the prompt's end count for what is not whole of them: bytes that the completion adds
        must not make the prompt's characters incomplete. Where there is no other text, all are kept: the
        completion does not begin the text.
        """
        pieces = self.detokenizer.byte_pieces
        shown: list[int] = []
        num_bytes, num_wanted = 0, _NUM_CONTEXT + 2 * self.detokenizer.num_rewritten
        for token in reversed(self._prompt):
            if self.adds_nothing(token):
                continue
            shown.append(token)
            if num_bytes == len(shown) - 1 and token in pieces:
                num_bytes += 1
            elif len(shown) - num_bytes >= num_wanted:
                if self.decode(shown[num_bytes:][::-1]).strip():
                    break
                num_wanted *= 2
        tokens, run = shown[num_bytes:][::-1], shown[:num_bytes][::-1]
        if run and self.decode(tokens):
            run = run[_len_whole(bytes(pieces[token] for token in run)) :]
        return Context(tuple(tokens), tuple(run), self.decode([*tokens, *run]))


def _len_whole(data: bytes) -> int:
    """Bytes of the whole characters at the beginning of ``data``; 0 if it is more than incomplete."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start if error.reason == "unexpected end of data" else 0
    return len(data)
