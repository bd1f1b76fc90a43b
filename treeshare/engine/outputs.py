"""What ``LLM.generate`` returns: vLLM's names and fields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Logprob:
    """One entry of a token's log-probabilities.

    Attributes:
        logprob: Natural log of the model's probability, before temperature.
        rank: 1 for the likeliest token of the vocabulary.
        decoded_token: Its text, or None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None


@dataclass(frozen=True, kw_only=True)
class CompletionOutput:
    """One completion of a prompt.

    Attributes:
        index: Which of the prompt's completions.
        text: Decoded, cut at the stop string; empty without a tokenizer.
        token_ids: Everything generated, a final stop token included.
        cumulative_logprob: Sum of the tokens' log-probabilities, before temperature.
        logprobs: Per token a mapping from token id, when asked for.
        finish_reason: ``stop`` or ``length``.
        stop_reason: The stop string or stop token id; None at end-of-sequence and at ``length``.
        weight_versions: Per token how often the weights had been changed when it was drawn.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str
    stop_reason: int | str | None
    weight_versions: list[int]


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """A prompt and its completions.

    Attributes:
        request_id: Number of the prompt in the call, as text.
        prompt: Its text, or None when token ids were given.
        prompt_token_ids: Its tokens.
        outputs: Completions, by index.
        finished: True: ``LLM.generate`` returns whole completions.
        num_cached_tokens: Prompt tokens that an earlier prompt of the call shares, and whose KV is stored
            once.
        ended: Why its other completions were given up, or None: ``outputs`` are all that were asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int
    ended: str | None = None
