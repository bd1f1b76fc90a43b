"""A client's answer has the same bits, whoever else asks at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integrations.openai.serving import NAME, serving
from treeshare import AsyncLLM


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_other_clients_change_no_bit_of_an_answer(chat_model, dtype):
    """Cuts in front of, in and behind a block of 256 keys; as many clients at once as there are prompts."""
    preamble = "def f(x):\n    return x + 1\n" * 14
    prompts = [preamble[:length] + end for length in (120, 255, 256, 300) for end in ("#", "# and so on")]
    params = {"n": 2, "seed": 4, "max_tokens": 8, "logprobs": 2}

    def ask(client, prompt):
        answer = client.completions.create(model=NAME, prompt=prompt, **params)
        return [(choice.text, choice.logprobs.token_logprobs) for choice in answer.choices]

    llm = AsyncLLM(chat_model, dtype=dtype)
    try:
        with serving(llm) as running:
            alone = [ask(running.client, prompt) for prompt in prompts]
            steps_alone = llm.llm.engine.stats.num_steps
            with ThreadPoolExecutor(len(prompts)) as pool:
                together = list(pool.map(ask, [running.client] * len(prompts), prompts))
    finally:
        llm.close()
    assert together == alone
    assert llm.llm.engine.stats.num_steps - steps_alone < steps_alone, "no request had company"
