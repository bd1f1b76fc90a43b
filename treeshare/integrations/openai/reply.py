"""Answers in OpenAI's form, whole or in pieces."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from treeshare.engine.streaming import FinishedOutput, StreamOutput, TokenOutput
from treeshare.integrations.openai.schema import ChatBody
from treeshare.text import bytes_of_letters, offsets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from treeshare.engine.llm import LLM
    from treeshare.engine.outputs import CompletionOutput
    from treeshare.integrations.openai.job import Job

_LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot express."""


@dataclass(frozen=True, slots=True)
class _Row:
    """Log-probabilities of a token.

    Attributes:
        entries: The token drawn, then others, each with its log-probability.
        offset: Where in the completion's text it begins.
        begins: Whether no text stands before it.
    """

    entries: list[tuple[int, float]]
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


@dataclass(slots=True)
class _Choice:
    """How far a choice has been sent.

    Attributes:
        begins: Whether no text stands before its next token; looked up only where log-probabilities are asked
            for.
        num_sent: Characters sent.
        rows: Of tokens that were not sent yet.
    """

    begins: bool
    num_sent: int = 0
    rows: list[_Row] = field(default_factory=list)


class Reply:
    """The answer to a request.

    Args:
        llm: The model.
        job: The request.
        speller: Of the model's tokens.
        key: What makes its id one of a kind; random by default.

    Attributes:
        num_tokens: Generated so far.
    """

    def __init__(self, llm: LLM, job: Job, speller: TokenSpeller, key: str | None = None) -> None:
        self._job, self._speller = job, speller
        self._is_chat = isinstance(job.body, ChatBody)
        self._continuations = [request.continuation(llm.loaded.detokenizer) for request in job.requests]
        self._choices: dict[int, _Choice] = {}
        self._id = ("chatcmpl-" if self._is_chat else "cmpl-") + (key or secrets.token_hex(16))
        self._created = int(time.time())
        self.num_tokens = 0

    # -- whole --

    def whole(self, outputs: Iterable[tuple[int, CompletionOutput]]) -> dict[str, Any]:
        """The answer's body.

        Args:
            outputs: Every completion, with the number of its prompt.
        """
        choices = sorted((self._choice(*output) for output in outputs), key=lambda choice: choice["index"])
        kind = "chat.completion" if self._is_chat else "text_completion"
        return self._frame(kind, choices) | {"usage": self.usage()}

    def _choice(self, number: int, output: CompletionOutput) -> dict[str, Any]:
        self.num_tokens += len(output.token_ids)
        logprobs = None
        if self._wants_logprobs:
            assert output.logprobs is not None
            begins, rows = self._begins_text(number), []
            places = self._offsets(number, output.token_ids)
            for token, at, place in zip(output.token_ids, output.logprobs, places, strict=True):
                others = ((i, entry.logprob) for i, entry in at.items() if i != token)
                rows.append(_Row([(token, at[token].logprob), *others], place, begins))
                begins = begins and self._speller.adds_nothing(token)
            logprobs = self._logprobs(rows)
        if self._is_chat:
            words: dict[str, Any] = {
                "message": {"role": "assistant", "content": output.text, "refusal": None}
            }
        else:
            words = {"text": self._job.echoes[number] + output.text}
        return {"index": number * self._job.body.n + output.index} | words | _ending(output, logprobs)

    # -- in pieces --

    def pieces(self, number: int, output: StreamOutput) -> Iterator[dict[str, Any]]:
        """What an output adds to the answer, as OpenAI's chunks.

        Args:
            number: Of the prompt.
            output: Of it.
        """
        index = output.index if isinstance(output, TokenOutput) else output.completion.index
        index += number * self._job.body.n
        choice = self._choices.get(index)
        if choice is None:
            begins = self._wants_logprobs and self._begins_text(number)
            choice = self._choices[index] = _Choice(begins)
            if self._is_chat:
                yield self._piece(index, {"delta": {"role": "assistant", "content": ""}})
            elif self._job.echoes[number]:
                yield self._piece(index, {"text": self._job.echoes[number]})
        if isinstance(output, FinishedOutput):
            completion = output.completion
            self.num_tokens += len(completion.token_ids)
            text = completion.text[choice.num_sent :]
            logprobs = self._take_logprobs(choice)
            if self._is_chat and (text or logprobs):
                yield self._piece(index, self._words(text) | {"logprobs": logprobs})
                logprobs = None
            yield self._piece(
                index, self._words("" if self._is_chat else text) | _ending(completion, logprobs)
            )
            return
        if output.logprobs is not None:
            entries = [(entry.token_id, entry.logprob) for entry in output.logprobs]
            choice.rows.append(_Row(entries, output.offset, choice.begins))
            choice.begins = choice.begins and self._speller.adds_nothing(output.token_id)
        if output.text and not output.is_last:
            choice.num_sent += len(output.text)
            logprobs = self._take_logprobs(choice)
            yield self._piece(index, self._words(output.text) | {"logprobs": logprobs})

    def last_piece(self) -> dict[str, Any]:
        """The number of tokens, after all other pieces."""
        return self._frame(self._chunk_kind, []) | {"usage": self.usage()}

    def _take_logprobs(self, choice: _Choice) -> dict[str, Any] | None:
        rows, choice.rows = choice.rows, []
        return self._logprobs(rows) if rows else None

    def _words(self, text: str) -> dict[str, Any]:
        if self._is_chat:
            return {"delta": {"content": text} if text else {}}
        return {"text": text}

    def _piece(self, index: int, words: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": index} | words
        return self._frame(self._chunk_kind, [{"logprobs": None, "finish_reason": None} | choice])

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    # -- both --

    def usage(self) -> dict[str, int]:
        """The number of tokens; a prompt counts once, however many completions it has."""
        num_prompt = sum(len(request.prompt_token_ids) for request in self._job.requests)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": self.num_tokens,
            "total_tokens": num_prompt + self.num_tokens,
        }

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        frame = {"id": self._id, "object": kind, "created": self._created, "model": self._job.model}
        return frame | {"choices": choices}

    @property
    def _wants_logprobs(self) -> bool:
        return self._job.requests[0].params.logprobs is not None

    def _begins_text(self, number: int) -> bool:
        """Whether no text stands before a prompt's completions."""
        continuation = self._continuations[number]
        return continuation is not None and continuation.begins_text

    def _offsets(self, number: int, token_ids: Sequence[int]) -> list[int]:
        """Where in the text each token begins; a part of a character begins where the character does."""
        continuation = self._continuations[number]
        return [0] * len(token_ids) if continuation is None else offsets(continuation, token_ids)

    def _logprobs(self, rows: Sequence[_Row]) -> dict[str, Any]:
        """Of some tokens, in the endpoint's form."""
        if self._is_chat:
            return {"content": [self._chat_token(row) for row in rows], "refusal": None}
        spelled = [
            [(self._speller.spell(i, begins=row.begins)[0], _number(value)) for i, value in row.entries]
            for row in rows
        ]
        return {
            "tokens": [row[0][0] for row in spelled],
            "token_logprobs": [row[0][1] for row in spelled],
            "top_logprobs": [dict(row) for row in spelled],
            "text_offset": [row.offset for row in rows],
        }

    def _chat_token(self, row: _Row) -> dict[str, Any]:
        def entry(token_id: int, value: float) -> dict[str, Any]:
            text, raw = self._speller.spell(token_id, begins=row.begins)
            return {"token": text, "logprob": _number(value), "bytes": raw}

        assert isinstance(self._job.body, ChatBody)
        top = sorted(row.entries, key=lambda pair: -pair[1])[: self._job.body.top_logprobs or 0]
        return entry(*row.entries[0]) | {"top_logprobs": [entry(*pair) for pair in top]}


def _ending(output: CompletionOutput, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "logprobs": logprobs,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
    }


def _number(value: float) -> float:
    return max(value, _LOWEST_LOGPROB)
