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
    from treeshare.sampling.sampler import TokenLogprob

    Decode = Callable[[Items[int]], str]

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
        is_last: Whether the completion ends with it: ``FinishedOutput`` then says which text counts.
        logprobs: The token and the likeliest ones at its place, when asked for.
    """

    request_id: str
    index: int
    position: int
    token_id: int
    text: str
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


class TextStream:
    """Turns a growing list of tokens into pieces of text; the pieces together are the whole text.

    Only the last few tokens are decoded each time. A character that is not whole yet is held back, and so are
    replacement characters at the end: until the last byte has come, some decoders write them for whole
    characters, too.

    Args:
        decode: Token ids to text.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        # The window is tokens [start, now); the text of [start, middle) is out.
        self._start = self._middle = 0

    def push(self, token_ids: Items[int]) -> str:
        """What the tokens since the last call add, as far as it is certain.

        Args:
            token_ids: All tokens so far.
        """
        before = self._decode(token_ids[self._start : self._middle]) if self._middle else ""
        text = self._decode(token_ids[self._start :])
        if text.endswith(_INCOMPLETE) or len(text) <= len(before):
            return ""
        self._start, self._middle = self._middle, len(token_ids)
        return text[len(before) :]


class StepEvents:
    """Turns the results of steps into outputs.

    Args:
        output: Makes a completion's output.
        decode: Token ids to text; None without a tokenizer.
        wants_tokens: Whether a request's tokens are asked for.
        decode_of: Instead of ``decode`` for a request, where requests differ.
    """

    def __init__(
        self,
        output: Callable[[Completion], CompletionOutput],
        decode: Decode | None,
        wants_tokens: Callable[[int], bool],
        decode_of: Callable[[int], Decode | None] | None = None,
    ) -> None:
        self._output, self._wants_tokens = output, wants_tokens
        self._decode_of = decode_of or (lambda _: decode)
        self._texts: dict[int, dict[int, TextStream]] = {}

    def forget(self, request: int) -> None:
        """Drop what is kept for a request that was cancelled."""
        self._texts.pop(request, None)

    def of(self, result: StepResult) -> Iterator[tuple[int, StreamOutput]]:
        """A step's outputs, each with its request's index; a last token comes before its whole completion."""
        for sequence in result.drawn:
            if self._wants_tokens(sequence.request_index):
                logprobs = sequence.logprobs[-1] if sequence.logprobs else None
                for index in sequence.completions:
                    yield self._token(sequence.request_index, index, sequence.token_ids, logprobs)
        for completion in result.finished:
            request, index = completion.request_index, completion.completion_index
            if self._wants_tokens(request):
                logprobs = completion.logprobs[-1] if completion.logprobs else None
                yield self._token(request, index, completion.token_ids, logprobs, is_last=True)
                self._texts[request].pop(index, None)
                if not self._texts[request]:
                    del self._texts[request]
            yield request, FinishedOutput(request_id=str(request), completion=self._output(completion))

    def _token(
        self,
        request: int,
        index: int,
        token_ids: Items[int],
        logprobs: Items[TokenLogprob] | None,
        *,
        is_last: bool = False,
    ) -> tuple[int, TokenOutput]:
        texts = self._texts.setdefault(request, {})
        text, decode = "", self._decode_of(request)
        if decode is not None:
            text = texts.setdefault(index, TextStream(decode)).push(token_ids)
        return request, TokenOutput(
            request_id=str(request),
            index=index,
            position=len(token_ids) - 1,
            token_id=token_ids[-1],
            text=text,
            is_last=is_last,
            logprobs=logprobs,
        )
