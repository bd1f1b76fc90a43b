"""What answers say of the tokens that a request's prompts share."""

from __future__ import annotations

import pytest

from tests.integrations.openai.serving import NAME
from tests.integrations.openai.test_server import MESSAGES, PROMPTS
from treeshare import SamplingParams


@pytest.mark.parametrize("prompts", [PROMPTS, ["Once upon", "Once", "Twice", "Once upon a"], ["Once"] * 3])
@pytest.mark.parametrize("stream", [False, True])
def test_usage_counts_the_tokens_that_prompts_share(served, llm, prompts, stream):
    outputs = llm.generate(prompts, SamplingParams(max_tokens=1, temperature=0), use_tqdm=False)
    expected = sum(output.num_cached_tokens for output in outputs)
    assert expected > 0
    body = {"model": NAME, "prompt": prompts, "max_tokens": 1, "n": 2}
    if stream:
        options = {"include_usage": True}
        *_, last = served.client.completions.create(**body, stream=True, stream_options=options)
        usage = last.usage
    else:
        usage = served.client.completions.create(**body).usage
    assert usage.prompt_tokens_details.cached_tokens == expected


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_shares_nothing_with_earlier_requests(served, stream):
    """However often it comes, the same request has the same usage."""
    body = {"model": NAME, "messages": MESSAGES, "max_tokens": 2, "n": 2, "seed": 1}
    body |= {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    for _ in range(2):
        answer = served.client.chat.completions.create(**body)
        usage = [piece.usage for piece in answer][-1] if stream else answer.usage
        assert usage.prompt_tokens_details.cached_tokens == 0
