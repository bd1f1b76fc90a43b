"""Log-probabilities of tokens in OpenAI's two forms, and how tokens are spelled in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treeshare.text import Continuation, bytes_of_letters, offsets

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from treeshare.engine.llm import LLM
    from treeshare.engine.node_scores import PromptLogprobs

_LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot express."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Log-probabilities of a token.

    Attributes:
        entries: The token, then others, each with its log-probability; the token alone without one.
        offset: Where in the text it begins.
        begins: Whether no text stands before it.
    """

    entries: list[tuple[int, float]] | int
    offset: int
    begins: bool


class TokenSpeller:
    """Text and bytes of single tokens.

    Args:
        llm: The model.
    """

    def __init__(self, llm: LLM) -> None:
        self._tokenizer, self._detokenizer = llm.loaded.tokenizer, llm.loaded.detokenizer
        self._known: dict[tuple[int, bool], tuple[str, list[int] | None]] = {}
        self._byte_of = bytes_of_letters()

    def spell(self, token_id: int, *, begins: bool = False) -> tuple[str, list[int] | None]:
        r"""What a token adds to a text, and its UTF-8 bytes; part of a character reads ``bytes:\xe2\x82``.

        Args:
            token_id: The token.
            begins: Whether nothing stands before it.
        """
        if (token_id, begins) not in self._known:
            self._known[token_id, begins] = self._look_up(token_id, begins)
        return self._known[token_id, begins]

    def adds_nothing(self, token_id: int) -> bool:
        """Whether a token leaves the beginning of a text to the next one."""
        detokenizer = self._detokenizer
        return detokenizer is not None and detokenizer.unseen(skip_special_tokens=True)[token_id]

    def _look_up(self, token_id: int, begins: bool) -> tuple[str, list[int] | None]:
        if self._tokenizer is None or self._detokenizer is None:
            return f"token_id:{token_id}", None
        text = self._detokenizer.token_text(token_id, begins=begins)
        if "\ufffd" not in text:
            return text, list(text.encode())
        raw = self._tokenizer.convert_ids_to_tokens(token_id) or ""
        if found := re.fullmatch("<0x([0-9A-Fa-f]{2})>", raw):
            part = [int(found[1], 16)]
        elif raw and all(letter in self._byte_of for letter in raw):
            part = [self._byte_of[letter] for letter in raw]
        else:
            return text, list(text.encode())
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in part), part

    def prompt_rows(
        self, token_ids: Sequence[int], found: PromptLogprobs | None, *, is_text: bool
    ) -> list[TokenRow]:
        """The rows of a prompt that an answer repeats.

        Args:
            token_ids: The prompt's.
            found: Its log-probabilities.
            is_text: Whether the text that is repeated lacks the special tokens that were added to it.
        """
        assert found is not None
        detokenizer, begins, rows = self._detokenizer, True, []
        places = [0] * len(token_ids)
        if detokenizer is not None:
            places = offsets(Continuation(detokenizer, [], skip_special_tokens=is_text), token_ids)
        for token, entries, place in zip(token_ids, found, places, strict=True):
            known = token if entries is None else [(entry.token_id, entry.logprob) for entry in entries]
            rows.append(TokenRow(known, place, begins))
            begins = begins and self.adds_nothing(token)
        return rows


def text_logprobs(rows: Iterable[TokenRow], speller: TokenSpeller) -> dict[str, list[Any]]:
    """The form of ``/v1/completions``; tokens that are spelled alike have the most likely one's place."""
    answer: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for row in rows:
        answer["text_offset"].append(row.offset)
        if isinstance(row.entries, int):
            answer["tokens"].append(speller.spell(row.entries, begins=row.begins)[0])
            answer["token_logprobs"].append(None)
            answer["top_logprobs"].append(None)
            continue
        spelled = [(speller.spell(i, begins=row.begins)[0], _number(value)) for i, value in row.entries]
        top: dict[str, float] = {}
        for text, value in spelled:
            top[text] = max(top.get(text, value), value)
        answer["tokens"].append(spelled[0][0])
        answer["token_logprobs"].append(spelled[0][1])
        answer["top_logprobs"].append(top)
    return answer


def chat_logprobs(rows: Iterable[TokenRow], speller: TokenSpeller, num_top: int) -> dict[str, Any]:
    """The form of ``/v1/chat/completions``."""
    return {"content": [_chat_token(row, speller, num_top) for row in rows], "refusal": None}


def _chat_token(row: TokenRow, speller: TokenSpeller, num_top: int) -> dict[str, Any]:
    def entry(token_id: int, value: float) -> dict[str, Any]:
        text, raw = speller.spell(token_id, begins=row.begins)
        return {"token": text, "logprob": _number(value), "bytes": raw}

    assert not isinstance(row.entries, int), "a generated token has a log-probability"
    top = sorted(row.entries, key=lambda pair: -pair[1])[:num_top]
    return entry(*row.entries[0]) | {"top_logprobs": [entry(*pair) for pair in top]}


def _number(value: float) -> float:
    return max(value, _LOWEST_LOGPROB)
