"""Outputs while requests run: completions as soon as they finish, and tokens if asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as Items

    from treeshare.engine.node_scores import PromptLogprobs
    from treeshare.engine.outputs import CompletionOutput
    from treeshare.engine.sequence import Completion, Sequence
    from treeshare.engine.step import StepResult
    from treeshare.sampling.sampler import TokenLogprob


@dataclass(frozen=True, kw_only=True)
class TokenOutput:
    """One token of one completion, as soon as it is drawn.

    Attributes:
        request_id: Number of the prompt in the call, as text.
        index: Which of the prompt's completions.
        position: Of the token in the completion.
        token_id: The token.
        text: What it adds to the text, as far as no later token changes it and no stop string cuts it; the
            last one brings the rest, so that all together are the completion's text. Empty without a
            tokenizer.
        offset: Where the token begins in the text, one that is part of a character where the character does.
        is_last: Whether the completion ends with it.
        logprobs: The token and the most likely ones at its place, when asked for.
        prompt_logprobs: With the first token, those of the prompt, when asked for.
    """

    request_id: str
    index: int
    position: int
    token_id: int
    text: str
    offset: int = 0
    is_last: bool = False
    logprobs: Items[TokenLogprob] | None = None
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(frozen=True, kw_only=True)
class FinishedOutput:
    """A completion that has ended.

    Attributes:
        request_id: Number of the prompt in the call, as text.
        completion: The whole completion.
        prompt_logprobs: Of the prompt, when asked for.
    """

    request_id: str
    completion: CompletionOutput
    prompt_logprobs: PromptLogprobs | None = None


StreamOutput = TokenOutput | FinishedOutput


@dataclass(slots=True)
class _Sent:
    """How much of a completion's text has come out.

    Attributes:
        num_chars: Characters.
        num_certain: Where its next token begins: characters that no later token changes.
    """

    num_chars: int = 0
    num_certain: int = 0


class StepEvents:
    """Turns the results of steps into outputs.

    Args:
        output: Makes a completion's output.
        wants_tokens: Whether a request's tokens are asked for.
    """

    def __init__(
        self, output: Callable[[Completion], CompletionOutput], wants_tokens: Callable[[int], bool]
    ) -> None:
        self._output, self._wants_tokens = output, wants_tokens
        self._sent: dict[int, dict[int, _Sent]] = {}

    def forget(self, request: int) -> None:
        """Drop what is kept for a request that was cancelled."""
        self._sent.pop(request, None)

    def of(self, result: StepResult) -> Iterator[tuple[int, StreamOutput | Exception]]:
        """A step's outputs, each with its request's index; a last token comes before its whole completion.

        A request that failed in the step, or whose tokens cannot be decoded, gets its error, then no more.
        """
        failed = dict(result.failed)
        makers: list[tuple[int, Callable[[], Items[StreamOutput]]]] = [
            (sequence.request_index, partial(self._tokens, sequence))
            for sequence in result.drawn
            if self._wants_tokens(sequence.request_index)
        ]
        makers += [(ending.request_index, partial(self._finished, ending)) for ending in result.finished]
        for request, make in makers:
            if request not in failed or request in result.failed:
                try:
                    yield from ((request, output) for output in make())
                except Exception as error:
                    failed[request] = error
        for request, reason in failed.items():
            self.forget(request)
            yield request, reason

    def _finished(self, completion: Completion) -> list[StreamOutput]:
        """A completion that ended, after its last token."""
        request = completion.request_index
        last = [self._last_token(completion)] if self._wants_tokens(request) else []
        finished = FinishedOutput(
            request_id=str(request),
            completion=self._output(completion),
            prompt_logprobs=completion.prompt_logprobs,
        )
        return [*last, finished]

    def _tokens(self, sequence: Sequence) -> list[TokenOutput]:
        """The latest token of each completion of a sequence that continues; their text is decoded once."""
        request, token_ids = sequence.request_index, sequence.token_ids
        text = sequence.stop.take(token_ids)
        num_certain = sequence.stop.num_certain
        logprobs = sequence.logprobs[-1] if sequence.logprobs else None
        own, outputs = self._sent.setdefault(request, {}), []
        for index in sequence.completions:
            sent = own.setdefault(index, _Sent())
            outputs.append(
                TokenOutput(
                    request_id=str(request),
                    index=index,
                    position=len(token_ids) - 1,
                    token_id=token_ids[-1],
                    text=text,
                    offset=sent.num_certain,
                    logprobs=logprobs,
                    prompt_logprobs=sequence.live.prompt_logprobs if len(token_ids) == 1 else None,
                )
            )
            sent.num_chars += len(text)
            sent.num_certain = num_certain
        return outputs

    def _last_token(self, completion: Completion) -> TokenOutput:
        """A completion's last token, with the text that has not come out before."""
        request, index = completion.request_index, completion.completion_index
        own = self._sent.get(request, {})
        sent = own.pop(index, _Sent())
        if not own:
            self.forget(request)
        return TokenOutput(
            request_id=str(request),
            index=index,
            position=len(completion.token_ids) - 1,
            token_id=completion.token_ids[-1],
            text=completion.text[sent.num_chars :],
            offset=sent.num_certain,
            is_last=True,
            logprobs=completion.logprobs[-1] if completion.logprobs else None,
            prompt_logprobs=completion.prompt_logprobs if len(completion.token_ids) == 1 else None,
        )
