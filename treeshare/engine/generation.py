"""One call of ``LLM.generate`` or ``LLM.stream``: collects outputs by prompt, and ends prompts early."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any

from treeshare.engine.outputs import CompletionOutput, PromptLogprobs, RequestOutput, prompt_logprobs_output
from treeshare.engine.prompts import shared_tokens
from treeshare.engine.streaming import FinishedOutput, StepEvents, StreamOutput
from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.engine.engine import Engine
    from treeshare.engine.prompts import ParsedPrompt
    from treeshare.engine.sequence import Completion, Request
    from treeshare.engine.step import StepResult
    from treeshare.text import Detokenizer

OnCompletion = Callable[[str, CompletionOutput], str | None]
"""Called with a prompt's number, as text, and a finished completion; a returned reason cancels the others."""


class GenerateCall:
    """The prompts of one call and their results so far.

    Args:
        prompts: Text, if any, and token ids of each.
        requests: One for each prompt, in order.
        output: Makes a completion's output.
        on_completion: The caller's; see ``OnCompletion``.
        cancel: Cancels what is left of a request, by its index.
        detokenizer: The model's, for the texts of prompts' tokens.

    Attributes:
        requests: As given.
    """

    def __init__(
        self,
        prompts: Sequence[ParsedPrompt],
        requests: Sequence[Request],
        output: Callable[[Completion], CompletionOutput],
        on_completion: OnCompletion | None,
        cancel: Callable[[int], object],
        detokenizer: Detokenizer | None,
    ) -> None:
        if on_completion is not None and not callable(on_completion):
            expected = "a function of a prompt's number and a completion, or None"
            raise ConfigError.of("on_completion", got=type(on_completion).__name__, expected=expected)
        self.requests = requests
        self._prompts, self._output = prompts, output
        self._on_completion, self._cancel = on_completion, cancel
        self._detokenizer = detokenizer
        self._reasons: dict[int, str] = {}

    def collect(self, completions: Iterable[Completion]) -> list[RequestOutput]:
        """Take all completions of the run; one output per prompt, in order."""
        outputs: list[list[CompletionOutput]] = [[] for _ in self.requests]
        prompt_logprobs: dict[int, PromptLogprobs | None] = {}
        for completion in completions:
            index = completion.request_index
            if index not in prompt_logprobs:
                tokens = self._prompts[index][1]
                prompt_logprobs[index] = prompt_logprobs_output(
                    tokens, completion.prompt_logprobs, self._detokenizer
                )
            output = self._output(completion)
            outputs[completion.request_index].append(output)
            self._finished(completion.request_index, output)
        shared = shared_tokens([request.prompt_token_ids for request in self.requests])
        return [
            RequestOutput(
                request_id=str(i),
                prompt=text,
                prompt_token_ids=token_ids,
                outputs=sorted(own, key=lambda output: output.index),
                finished=True,
                num_cached_tokens=num_shared,
                prompt_logprobs=prompt_logprobs.get(i),
                ended=self._reasons.get(i),
            )
            for i, ((text, token_ids), own, num_shared) in enumerate(
                zip(self._prompts, outputs, shared, strict=True)
            )
        ]

    def stream(self, steps: Iterable[StepResult], *, tokens: bool) -> Generator[StreamOutput, None, None]:
        """The outputs of each step, as they come; see ``LLM.stream``."""
        events = StepEvents(self._output, lambda _: tokens)
        for result in steps:
            for index, output in events.of(result):
                if isinstance(output, Exception):
                    raise output
                if isinstance(output, FinishedOutput):
                    self._finished(index, output.completion)
                yield output

    def _finished(self, index: int, output: CompletionOutput) -> None:
        """Cancel a request's other completions if the caller gives a reason; the first reason is kept."""
        reason = self._on_completion(str(index), output) if self._on_completion else None
        if reason:
            self._reasons.setdefault(index, reason)
            self._cancel(index)


UseTqdm = bool | Callable[..., Any]
"""Whether to show progress on stderr, or a function that makes the bar, with ``tqdm``'s arguments."""


def progress_bar(description: str, total: int, use_tqdm: UseTqdm) -> Any:  # noqa: ANN401
    """A progress bar, a context manager; it shows nothing where ``use_tqdm`` is false."""
    from tqdm.auto import tqdm

    make = use_tqdm if callable(use_tqdm) else tqdm
    return make(total=total, desc=description, unit="", dynamic_ncols=True, disable=not use_tqdm)


def with_progress(
    completions: Iterable[Completion], requests: Sequence[Request], engine: Engine, use_tqdm: UseTqdm
) -> Generator[Completion, None, None]:
    """Pass ``completions`` on, with a progress bar, see ``progress_bar``."""
    total = sum(len(request.completion_indices) for request in requests)
    with progress_bar("Completions", total, use_tqdm) as bar:
        for completion in completions:
            bar.update()
            bar.set_postfix_str(f"{engine.stats.tokens_per_s:.0f} tokens/s")
            yield completion
