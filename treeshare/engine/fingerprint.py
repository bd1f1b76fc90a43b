"""A hash of what a model computes: the same on every machine, if its arithmetic is.

Fixed prompts, of token ids, are completed under several sampling parameters, and some continuations are
scored; tokens and log-probabilities, to the last bit, and the weights are what is hashed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from treeshare.config import ARITHMETIC
from treeshare.errors import ConfigError
from treeshare.files import dump_json
from treeshare.native import PORTABLE, kernel_level
from treeshare.sampling import SamplingParams

if TYPE_CHECKING:
    from treeshare.engine.llm import LLM

NUM_DIGITS = 16

_LENGTHS = (200, 130, 60, 5)
"""Tokens of prompts; the first three share a beginning."""

_PARAMS = (
    SamplingParams(n=4, seed=1, temperature=0.8, top_p=0.95, max_tokens=24, ignore_eos=True),
    SamplingParams(n=2, seed=1, temperature=1.2, min_p=0.05, top_k=40, max_tokens=24, ignore_eos=True),
    SamplingParams(n=2, seed=1, temperature=1, repetition_penalty=1.1, max_tokens=24, ignore_eos=True),
    SamplingParams(n=1, temperature=0, max_tokens=24, ignore_eos=True),
)
"""The compiled sampler's rows, those of the general path, and greedy ones."""


def fingerprint(llm: LLM) -> str:
    """The hash of a model's own arithmetic, in hexadecimal digits.

    Raises:
        ConfigError: If the model's results may differ from CPU to CPU.
    """
    if (llm.loaded.level or kernel_level()) != PORTABLE:
        raise ConfigError.of(
            "fingerprint",
            got=f"{llm.dtype} at level {kernel_level()}",
            expected="a model that computes the same on every CPU",
            remedy="use quantization int8",
        )
    prompts = _prompts(llm.vocab_size, llm.max_model_len)
    cases = [(prompt, params) for params in _PARAMS for prompt in prompts]
    requests = llm.requests([prompt for prompt, _ in cases], [params for _, params in cases])
    completions = sorted(
        (found.request_index, found.completion_index, found.token_ids, found.cumulative_logprob.hex())
        for found in llm.engine.run(requests)
    )
    pairs = [(prompt[: len(prompt) // 2 + 1], prompt[len(prompt) // 2 + 1 :]) for prompt in prompts]
    scores = [[float(value).hex() for value in score.logprobs] for score in llm.score(pairs, use_tqdm=False)]
    content = [ARITHMETIC, llm.loaded.fingerprint(), completions, scores]
    return hashlib.sha256(dump_json(content)).hexdigest()[:NUM_DIGITS]


def _prompts(vocab_size: int, max_model_len: int) -> list[list[int]]:
    """Token ids that follow from their places alone."""
    longest = max(2, max_model_len // 2)
    tokens = [(7 + 37 * place * place + 11 * place) % vocab_size for place in range(max(_LENGTHS))]
    shared = [tokens[: min(length, longest)] for length in _LENGTHS[:-1]]
    return [*shared, tokens[-min(_LENGTHS[-1], longest) :]]
