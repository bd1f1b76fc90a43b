"""Answers in OpenAI's form, whole or in pieces."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from treeshare.engine.outputs import prompt_logprobs_output
from treeshare.engine.prompts import shared_tokens
from treeshare.engine.streaming import FinishedOutput, StreamOutput, TokenOutput
from treeshare.integrations.openai.answer_message import Delta, GrowingMessage
from treeshare.integrations.openai.schema import ChatBody
from treeshare.integrations.openai.token_rows import TokenRow, chat_logprobs, text_logprobs
from treeshare.text import offsets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from treeshare.engine.llm import LLM
    from treeshare.engine.node_scores import PromptLogprobs
    from treeshare.engine.outputs import CompletionOutput
    from treeshare.integrations.openai.job import Job
    from treeshare.integrations.openai.token_rows import TokenSpeller


@dataclass(slots=True)
class _Choice:
    """How far a choice has been sent.

    Attributes:
        begins: Whether no text stands before its next token; looked up only where log-probabilities are asked
            for.
        message: Of a chat.
        num_sent: Characters sent, or kept by ``message``.
        rows: Of tokens that were not sent yet.
    """

    begins: bool
    message: GrowingMessage | None
    num_sent: int = 0
    rows: list[TokenRow] = field(default_factory=list)


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
        self._detokenizer = llm.loaded.detokenizer
        self._prompt_logprobs: dict[int, PromptLogprobs | None] = {}
        self._is_chat = isinstance(job.body, ChatBody)
        self._continuations = [request.continuation(llm.loaded.detokenizer) for request in job.requests]
        self._choices: dict[int, _Choice] = {}
        reasoning = llm.engine.reasoning
        self._tags = reasoning.tags
        self._is_open = self._is_chat and reasoning.opens(job.requests[0].prompt_token_ids)
        self._id = ("chatcmpl-" if self._is_chat else "cmpl-") + (key or secrets.token_hex(16))
        self._created = int(time.time())
        self.num_tokens = 0

    def note_prompt(self, number: int, found: PromptLogprobs | None) -> None:
        """The log-probabilities of a prompt, where asked for, before any of its completions is answered."""
        self._prompt_logprobs.setdefault(number, found)

    # -- whole --

    def whole(self, outputs: Iterable[tuple[int, CompletionOutput]]) -> dict[str, Any]:
        """The answer's body.

        Args:
            outputs: Every completion, with the number of its prompt.
        """
        choices = sorted((self._choice(*output) for output in outputs), key=lambda choice: choice["index"])
        kind = "chat.completion" if self._is_chat else "text_completion"
        answer = self._frame(kind, choices) | {"usage": self.usage()}
        if self._is_chat and self._job.body.prompt_logprobs is not None:
            answer["prompt_logprobs"] = self._shown_prompt(0)
        return answer

    def _choice(self, number: int, output: CompletionOutput) -> dict[str, Any]:
        job = self._job
        if not job.generates:
            return {"index": number * job.body.n + output.index} | self._prompt_alone(number)
        self.num_tokens += len(output.token_ids)
        logprobs = None
        if self._wants_logprobs:
            assert output.logprobs is not None
            begins, rows = self._begins_text(number), self._echo_rows(number)
            places = self._offsets(number, output.token_ids)
            for token, at, place in zip(output.token_ids, output.logprobs, places, strict=True):
                others = ((i, entry.logprob) for i, entry in at.items() if i != token)
                rows.append(TokenRow([(token, at[token].logprob), *others], place, begins))
                begins = begins and self._speller.adds_nothing(token)
            logprobs = self._logprobs(rows)
        index = number * job.body.n + output.index
        if self._is_chat:
            message = self._message(index)
            words: dict[str, Any] = {"message": message.whole(output.text)}
            return {"index": index} | words | _ending(output, logprobs, message)
        words = {"text": job.echoes[number] + output.text}
        if job.body.prompt_logprobs is not None:
            words["prompt_logprobs"] = self._shown_prompt(number)
        return {"index": index} | words | _ending(output, logprobs)

    def _message(self, index: int) -> GrowingMessage:
        """A choice's message, without a word yet."""
        job = self._job
        assert isinstance(job.body, ChatBody)
        return GrowingMessage(
            self._tags,
            is_open=self._is_open,
            shows_reasoning=job.body.include_reasoning,
            tools=job.body.callable_tools,
            forced=job.body.forced_tool,
            max_calls=None if job.body.parallel_tool_calls else 1,
            key=f"{self._id} {index}",
        )

    # -- what is said of the prompt --

    def _echo_rows(self, number: int) -> list[TokenRow]:
        """Of a prompt that the answer repeats, where log-probabilities are asked for; else nothing."""
        body, prompt = self._job.body, self._job.requests[number].prompt_token_ids
        if isinstance(body, ChatBody) or not body.echo or body.logprobs is None:
            return []
        is_text = isinstance(body.prompt[number], str)
        return self._speller.prompt_rows(prompt, self._prompt_logprobs.get(number), is_text=is_text)

    def _prompt_alone(self, number: int) -> dict[str, Any]:
        """A choice of nothing but the prompt: ``max_tokens`` is 0."""
        rows = self._echo_rows(number)
        choice: dict[str, Any] = {"text": self._job.echoes[number]}
        if self._job.body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._shown_prompt(number)
        logprobs = self._logprobs(rows) if rows else None
        return choice | {"logprobs": logprobs, "finish_reason": "length", "stop_reason": None}

    def _shown_prompt(self, number: int) -> list[dict[str, Any] | None]:
        """The log-probabilities of a prompt in vLLM's form."""
        prompt = self._job.requests[number].prompt_token_ids
        found = prompt_logprobs_output(prompt, self._prompt_logprobs.get(number), self._detokenizer)
        assert found is not None
        return [
            None if row is None else {str(token): asdict(entry) for token, entry in row.items()}
            for row in found
        ]

    # -- in pieces --

    def pieces(self, number: int, output: StreamOutput) -> Iterator[dict[str, Any]]:
        """What an output adds to the answer, as OpenAI's chunks.

        Args:
            number: Of the prompt.
            output: Of it.
        """
        self.note_prompt(number, output.prompt_logprobs)
        index = output.index if isinstance(output, TokenOutput) else output.completion.index
        index += number * self._job.body.n
        choice = self._choices.get(index)
        if choice is None:
            begins = self._wants_logprobs and self._begins_text(number)
            message = self._message(index) if self._is_chat else None
            choice = self._choices[index] = _Choice(begins, message)
            if self._is_chat:
                yield self._piece(index, {"delta": {"role": "assistant", "content": ""}})
            elif not self._job.generates:
                yield self._piece(index, self._prompt_alone(number))
            elif self._job.echoes[number]:
                rows = self._echo_rows(number)
                logprobs = self._logprobs(rows) if rows else None
                yield self._piece(index, {"text": self._job.echoes[number], "logprobs": logprobs})
        if not self._job.generates:
            return
        if isinstance(output, FinishedOutput):
            yield from self._last_pieces(index, choice, output.completion)
            return
        if output.logprobs is not None:
            entries = [(entry.token_id, entry.logprob) for entry in output.logprobs]
            place = len(self._job.echoes[number]) + output.offset
            choice.rows.append(TokenRow(entries, place, choice.begins))
            choice.begins = choice.begins and self._speller.adds_nothing(output.token_id)
        if output.text and not output.is_last:
            choice.num_sent += len(output.text)
            if choice.message is None:
                logprobs = self._take_logprobs(choice)
                yield self._piece(index, {"text": output.text, "logprobs": logprobs})
            else:
                yield from self._deltas(index, choice, choice.message.feed(output.text))

    def _last_pieces(
        self, index: int, choice: _Choice, completion: CompletionOutput
    ) -> Iterator[dict[str, Any]]:
        """What a completion that has ended adds."""
        self.num_tokens += len(completion.token_ids)
        text = completion.text[choice.num_sent :]
        if choice.message is None:
            yield self._piece(index, {"text": text} | _ending(completion, self._take_logprobs(choice)))
            return
        deltas = [*choice.message.feed(text), *choice.message.finish()]
        yield from self._deltas(index, choice, deltas or [{}] * bool(choice.rows))
        yield self._piece(index, {"delta": {}} | _ending(completion, None, choice.message))

    def last_piece(self) -> dict[str, Any]:
        """The number of tokens, after all other pieces."""
        return self._frame(self._chunk_kind, []) | {"usage": self.usage()}

    def _take_logprobs(self, choice: _Choice) -> dict[str, Any] | None:
        rows, choice.rows = choice.rows, []
        return self._logprobs(rows) if rows else None

    def _deltas(self, index: int, choice: _Choice, deltas: list[Delta]) -> Iterator[dict[str, Any]]:
        """Pieces of a message; the first has the log-probabilities of what was held back, too."""
        for delta in deltas:
            yield self._piece(index, {"delta": delta, "logprobs": self._take_logprobs(choice)})

    def _piece(self, index: int, words: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": index} | words
        return self._frame(self._chunk_kind, [{"logprobs": None, "finish_reason": None} | choice])

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    # -- both --

    def usage(self) -> dict[str, Any]:
        """The number of tokens; a prompt counts once, however many completions it has.

        ``cached_tokens`` are those that a prompt shares with an earlier one of the same request, as
        ``RequestOutput.num_cached_tokens`` has them: who else asks at the time, or asked before, changes no
        answer.
        """
        prompts = [request.prompt_token_ids for request in self._job.requests]
        num_prompt = sum(map(len, prompts))
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": self.num_tokens,
            "total_tokens": num_prompt + self.num_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(shared_tokens(prompts))},
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
        continuation, first = self._continuations[number], len(self._job.echoes[number])
        if continuation is None:
            return [first] * len(token_ids)
        return [first + place for place in offsets(continuation, token_ids)]

    def _logprobs(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        """Of some tokens, in the endpoint's form."""
        body = self._job.body
        if isinstance(body, ChatBody):
            return chat_logprobs(rows, self._speller, body.top_logprobs or 0)
        return text_logprobs(rows, self._speller)


def _ending(
    output: CompletionOutput, logprobs: dict[str, Any] | None, message: GrowingMessage | None = None
) -> dict[str, Any]:
    reason = output.finish_reason
    return {
        "logprobs": logprobs,
        "finish_reason": reason if message is None else message.finish_reason(reason),
        "stop_reason": output.stop_reason,
    }
