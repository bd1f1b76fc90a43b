"""What comes out while requests run: completions as they finish, tokens if asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as Items

    from treeshare.engine.engine import StepResult
    from treeshare.engine.outputs import CompletionOutput
    from treeshare.engine.sequence import Completion

_INCOMPLETE = "\ufffd"


@dataclass(frozen=True, kw_only=True)
class TokenOutput:
    """One token of one completion, as soon as it is drawn.

    Attributes:
        request_id: Number of the prompt in the call, as text.
        index: Which of the prompt's completions.
        position: Of the token in the completion.
        token_id: The token.
        text: What it adds to the text, once characters are whole; a stop string is not cut away here. Empty
            without a tokenizer.
    """

    request_id: str
    index: int
    position: int
    token_id: int
    text: str


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


class StepEvents:
    """Turns what a step brought into outputs.

    Args:
        output: Makes a completion's output.
        decode: Token ids to text; None without a tokenizer.
        wants_tokens: Whether a request's tokens are asked for.
    """

    def __init__(
        self,
        output: Callable[[Completion], CompletionOutput],
        decode: Callable[[Items[int]], str] | None,
        wants_tokens: Callable[[int], bool],
    ) -> None:
        self._output, self._decode, self._wants_tokens = output, decode, wants_tokens
        self._num_chars: dict[tuple[int, int], int] = {}

    def forget(self, request: int) -> None:
        """Let go of what is kept for a request that was cancelled."""
        self._num_chars = {key: number for key, number in self._num_chars.items() if key[0] != request}

    def of(self, result: StepResult) -> Iterator[tuple[int, StreamOutput]]:
        """The outputs of a step with the index of the request of each; a completion's last token first."""
        for sequence in result.drawn:
            for index in sequence.completions:
                yield from self._token(sequence.request_index, index, sequence.token_ids)
        for completion in result.finished:
            request, index = completion.request_index, completion.completion_index
            yield from self._token(request, index, completion.token_ids)
            self._num_chars.pop((request, index), None)
            yield request, FinishedOutput(request_id=str(request), completion=self._output(completion))

    def _token(self, request: int, index: int, token_ids: Items[int]) -> Iterator[tuple[int, StreamOutput]]:
        if not self._wants_tokens(request):
            return
        text = "" if self._decode is None else self._decode(token_ids)
        sent = self._num_chars.get((request, index), 0)
        if text.endswith(_INCOMPLETE):
            text = text[:sent]
        self._num_chars[request, index] = max(sent, len(text))
        yield (
            request,
            TokenOutput(
                request_id=str(request),
                index=index,
                position=len(token_ids) - 1,
                token_id=token_ids[-1],
                text=text[sent:],
            ),
        )
