"""What comes out while requests run: completions as they finish, tokens if asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as Items

    from treeshare.engine.outputs import CompletionOutput
    from treeshare.engine.sequence import Completion, Sequence
    from treeshare.engine.step import StepResult
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
        wants_tokens: Whether a request's tokens are asked for.
        decode_of: Token ids to text, for a request; None without a tokenizer.
    """

    def __init__(
        self,
        output: Callable[[Completion], CompletionOutput],
        wants_tokens: Callable[[int], bool],
        decode_of: Callable[[int], Decode | None],
    ) -> None:
        self._output, self._wants_tokens = output, wants_tokens
        self._decode_of = decode_of
        self._texts: dict[int, dict[int, TextStream]] = {}

    def forget(self, request: int) -> None:
        """Drop what is kept for a request that was cancelled."""
        self._texts.pop(request, None)

    def of(self, result: StepResult) -> Iterator[tuple[int, StreamOutput | Exception]]:
        """A step's outputs, each with its request's index; a last token comes before its whole completion.

        A request that failed in the step, or whose tokens cannot be decoded, gets its error, then no more.
        """
        failed = dict(result.failed)
        drawn = [(sequence.request_index, partial(self._drawn, sequence)) for sequence in result.drawn]
        ended = [(ending.request_index, partial(self._finished, ending)) for ending in result.finished]
        for request, make in (*drawn, *ended):
            if request not in failed or request in result.failed:
                try:
                    yield from ((request, output) for output in make())
                except Exception as error:
                    failed[request] = error
        for request, reason in failed.items():
            self.forget(request)
            yield request, reason

    def _drawn(self, sequence: Sequence) -> list[StreamOutput]:
        """The latest token of a sequence that goes on, for each of its completions."""
        if not self._wants_tokens(sequence.request_index):
            return []
        logprobs = sequence.logprobs[-1] if sequence.logprobs else None
        return [
            self._token(sequence.request_index, index, sequence.token_ids, logprobs)
            for index in sequence.completions
        ]

    def _finished(self, completion: Completion) -> list[StreamOutput]:
        """A completion that ended, after its last token."""
        request, index = completion.request_index, completion.completion_index
        outputs: list[StreamOutput] = []
        if self._wants_tokens(request):
            logprobs = completion.logprobs[-1] if completion.logprobs else None
            outputs.append(self._token(request, index, completion.token_ids, logprobs, is_last=True))
            self._texts[request].pop(index, None)
            if not self._texts[request]:
                del self._texts[request]
        return [*outputs, FinishedOutput(request_id=str(request), completion=self._output(completion))]

    def _token(
        self,
        request: int,
        index: int,
        token_ids: Items[int],
        logprobs: Items[TokenLogprob] | None,
        *,
        is_last: bool = False,
    ) -> TokenOutput:
        texts = self._texts.setdefault(request, {})
        text, decode = "", self._decode_of(request)
        if decode is not None:
            text = texts.setdefault(index, TextStream(decode)).push(token_ids)
        return TokenOutput(
            request_id=str(request),
            index=index,
            position=len(token_ids) - 1,
            token_id=token_ids[-1],
            text=text,
            is_last=is_last,
            logprobs=logprobs,
        )
