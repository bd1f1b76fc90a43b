"""What comes out while requests run: completions as they finish, tokens if asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as Items

    from treeshare.engine.engine import StepResult
    from treeshare.engine.outputs import CompletionOutput
    from treeshare.engine.sequence import Completion, Sequence
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
        logprobs: The token and the likeliest ones at its place, when asked for.
    """

    request_id: str
    index: int
    position: int
    token_id: int
    text: str
    offset: int = 0
    is_last: bool = False
    logprobs: Items[TokenLogprob] | None = None


@dataclass(frozen=True, kw_only=True)
class FinishedOutput:
    """A completion that has ended.

    Attributes:
        request_id: Number of the prompt in the call, as text.
        completion: The whole completion.
    """

    request_id: str
    completion: CompletionOutput


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

    def of(self, result: StepResult) -> Iterator[tuple[int, StreamOutput]]:
        """A step's outputs, each with its request's index; a last token comes before its whole completion."""
        for sequence in result.drawn:
            if self._wants_tokens(sequence.request_index):
                yield from self._tokens(sequence)
        for completion in result.finished:
            request, index = completion.request_index, completion.completion_index
            if self._wants_tokens(request):
                yield request, self._last_token(completion)
                self._sent[request].pop(index, None)
                if not self._sent[request]:
                    del self._sent[request]
            yield request, FinishedOutput(request_id=str(request), completion=self._output(completion))

    def _of_completion(self, request: int, index: int) -> _Sent:
        return self._sent.setdefault(request, {}).setdefault(index, _Sent())

    def _tokens(self, sequence: Sequence) -> Iterator[tuple[int, TokenOutput]]:
        """The latest token of each of a sequence's completions; their text is decoded once."""
        request, token_ids = sequence.request_index, sequence.token_ids
        text = sequence.stop.take(token_ids)
        num_certain = sequence.stop.num_certain
        logprobs = sequence.logprobs[-1] if sequence.logprobs else None
        for index in sequence.completions:
            sent = self._of_completion(request, index)
            yield (
                request,
                TokenOutput(
                    request_id=str(request),
                    index=index,
                    position=len(token_ids) - 1,
                    token_id=token_ids[-1],
                    text=text,
                    offset=sent.num_certain,
                    logprobs=logprobs,
                ),
            )
            sent.num_chars += len(text)
            sent.num_certain = num_certain

    def _last_token(self, completion: Completion) -> TokenOutput:
        """A completion's last token, with the text that has not come out before."""
        request, index = completion.request_index, completion.completion_index
        sent = self._of_completion(request, index)
        return TokenOutput(
            request_id=str(request),
            index=index,
            position=len(completion.token_ids) - 1,
            token_id=completion.token_ids[-1],
            text=completion.text[sent.num_chars :],
            offset=sent.num_certain,
            is_last=True,
            logprobs=completion.logprobs[-1] if completion.logprobs else None,
        )
