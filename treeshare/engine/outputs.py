"""What ``LLM.generate`` returns: vLLM's names and fields."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from treeshare.text.reasoning import split_reasoning
from treeshare.vllm_names import AnsweredAttributes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.engine.node_scores import PromptLogprobs as RawPromptLogprobs
    from treeshare.engine.sequence import Completion
    from treeshare.sampling.sampler import TokenLogprob
    from treeshare.text import Detokenizer
    from treeshare.text.reasoning import ReasoningTags


@dataclass(frozen=True, kw_only=True)
class Logprob:
    """One entry of a token's log-probabilities.

    Attributes:
        logprob: Natural log of the model's probability, before temperature.
        rank: 1 for the most likely token of the vocabulary.
        decoded_token: What it adds to the text, special tokens included; None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None


PromptLogprobs = list[dict[int, Logprob] | None]
"""Of a prompt: for each token but the first, the token and the most likely ones at its place."""


@dataclass(frozen=True, kw_only=True)
class CompletionOutput(AnsweredAttributes):
    """One completion of a prompt.

    Attributes:
        index: Number of the completion among those of its prompt.
        text: The text after the prompt's, up to the stop string; empty without a tokenizer.
        token_ids: All generated tokens, including a final stop token.
        cumulative_logprob: Sum of the tokens' log-probabilities, before temperature.
        logprobs: For each token a mapping from token ids to log-probabilities, if they were asked for.
        finish_reason: ``stop`` or ``length``.
        stop_reason: The stop string or stop token id; None at end-of-sequence and at ``length``.
        weight_versions: For each token, how many times the weights had been changed when it was drawn.
        reasoning: The model's reasoning, a part of ``text``, without its tags; None if there is none.
        answer: ``text`` without the reasoning and its tags.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str
    stop_reason: int | str | None
    weight_versions: list[int]
    reasoning: str | None = None
    answer: str = ""


@dataclass(frozen=True, kw_only=True)
class RequestOutput(AnsweredAttributes):
    """A prompt and its completions.

    Attributes:
        request_id: Number of the prompt in the call, as text.
        prompt: Its text; None if token ids were given.
        prompt_token_ids: Its tokens.
        outputs: Its completions, by index.
        finished: True: ``LLM.generate`` returns whole completions.
        num_cached_tokens: Number of prompt tokens that are shared with an earlier prompt of the call.
        prompt_logprobs: The same as ``logprobs`` for each token of the prompt; None for the first token.
        ended: Why its other completions were cancelled; None if ``outputs`` has all that were asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int
    prompt_logprobs: PromptLogprobs | None = None
    ended: str | None = None

    def _repr_html_(self) -> str:
        """A table for a notebook: the prompt's end, and each completion."""
        prompt = str(self.prompt_token_ids) if self.prompt is None else self.prompt
        shown = prompt if len(prompt) <= _SHOWN else "…" + prompt[-_SHOWN:]
        head = f"{len(self.prompt_token_ids):,} prompt tokens, {self.num_cached_tokens:,} shared"
        if self.ended is not None:
            head += f"; ended: {self.ended}"
        rows = "".join(
            f"<tr><td>{out.index}</td><td>{_preformatted(out.text or str(out.token_ids))}</td>"
            f"<td>{escape(out.finish_reason)}</td><td>{len(out.token_ids):,}</td>"
            f"<td>{out.cumulative_logprob:.2f}</td></tr>"
            for out in self.outputs
        )
        columns = "".join(
            f"<th>{name}</th>" for name in ("index", "completion", "finished by", "tokens", "log-probability")
        )
        return (
            f"<div>{escape(head)}{_preformatted(shown)}<table><thead><tr>{columns}</tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )


_SHOWN = 400
"""Characters of a prompt's end that a notebook shows."""


def _preformatted(text: str) -> str:
    return f'<pre style="white-space:pre-wrap;text-align:left;margin:0">{escape(text)}</pre>'


def _text(detokenizer: Detokenizer | None, token_id: int, begins: bool) -> str | None:
    return None if detokenizer is None else detokenizer.token_text(token_id, begins=begins)


def completion_output(
    completion: Completion, detokenizer: Detokenizer | None, tags: ReasoningTags | None = None
) -> CompletionOutput:
    """A completion as ``LLM.generate`` returns it; without a tokenizer tokens have no text."""
    logprobs = None
    if completion.logprobs is not None:
        logprobs = _with_texts(
            completion.token_ids, completion.logprobs, detokenizer, begins=completion.begins_text
        )
    reasoning, answer = split_reasoning(completion.text, tags, is_open=completion.opened_reasoning)
    return CompletionOutput(
        index=completion.completion_index,
        text=completion.text,
        token_ids=completion.token_ids,
        cumulative_logprob=completion.cumulative_logprob,
        logprobs=logprobs,
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        weight_versions=completion.weight_versions,
        reasoning=reasoning,
        answer=answer,
    )


def prompt_logprobs_output(
    prompt: Sequence[int], entries: RawPromptLogprobs | None, detokenizer: Detokenizer | None
) -> PromptLogprobs | None:
    """A prompt's log-probabilities, as ``LLM.generate`` returns them; None where they were not asked for."""
    if entries is None:
        return None
    begins = detokenizer is None or detokenizer.unseen(skip_special_tokens=True)[prompt[0]]
    later = [entry for entry in entries if entry is not None]
    return [None, *_with_texts(prompt[1:], later, detokenizer, begins=bool(begins))]


def _with_texts(
    token_ids: Sequence[int],
    rows: Sequence[Sequence[TokenLogprob]],
    detokenizer: Detokenizer | None,
    *,
    begins: bool,
) -> list[dict[int, Logprob]]:
    """Log-probabilities with the tokens' texts; ``begins``: no text stands before the first token."""
    found = []
    for token_id, entries in zip(token_ids, rows, strict=True):
        found.append(
            {
                entry.token_id: Logprob(
                    logprob=entry.logprob,
                    rank=entry.rank,
                    decoded_token=_text(detokenizer, entry.token_id, begins),
                )
                for entry in entries
            }
        )
        begins = begins and detokenizer is not None and detokenizer.unseen(skip_special_tokens=True)[token_id]
    return found
