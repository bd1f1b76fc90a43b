"""The ends of what sampling parameters may say: ``min_tokens`` by transformers' rule, the largest values."""

from __future__ import annotations

import asyncio
from dataclasses import fields

import pytest
import torch
import transformers

from tests.engine.forests import requests_for, run
from tests.kernel_levels import LEVELS, using_kernels
from treeshare import LLM, AsyncLLM
from treeshare.errors import ConfigError
from treeshare.sampling import SamplingParams
from treeshare.sampling.params import MAX_COUNT, MAX_LENGTH, MAX_N

PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def folder(model_dir):
    return model_dir("llama")


@pytest.fixture(scope="module")
def reference(folder):
    """transformers' greedy tokens with an end-of-sequence token and a minimum of new tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def generate(end, least):
        options = {"eos_token_id": end, "min_new_tokens": least or None, "max_new_tokens": 10}
        with torch.inference_mode():
            tokens = model.generate(torch.tensor([PROMPT]), do_sample=False, pad_token_id=0, **options)
        return tokens[0, len(PROMPT) :].tolist()

    return generate


@pytest.mark.parametrize("least", range(7))
def test_min_tokens_is_min_new_tokens(folder, reference, least):
    """The end as each of the first tokens that greedy decoding gives."""
    free = reference(None, 0)
    ends = list(dict.fromkeys(free))[:5]
    params = [
        SamplingParams(temperature=0, max_tokens=10, min_tokens=least, ignore_eos=True, stop_token_ids=[end])
        for end in ends
    ]
    requests = [request for each in params for request in requests_for([PROMPT], each)]
    completions = run(folder, requests)
    for place, end in enumerate(ends):
        tokens = completions[place, 0].token_ids
        assert tokens == reference(end, least)
        assert end not in tokens[:least]


def test_min_tokens_holds_for_the_models_own_end(folder):
    """Sampled, with each way of drawing: no end among the first, and some as the next."""
    for level in [*LEVELS, "none"]:
        params = SamplingParams(
            n=64, temperature=3.0, min_tokens=3, max_tokens=4, stop_token_ids=range(2, 150)
        )
        with using_kernels(level):
            completions = run(folder, requests_for([PROMPT], params)).values()
        ends = {1, *range(2, 150)}
        assert all(not ends & set(completion.token_ids[:3]) for completion in completions)
        assert any(completion.finish_reason == "stop" for completion in completions)


LARGEST = {
    "temperature": 10**300,
    "top_k": MAX_COUNT,
    "logprobs": MAX_COUNT,
    "seed": 2**64 - 1,
    "max_tokens": MAX_LENGTH,
    "min_tokens": MAX_LENGTH,
    "presence_penalty": 2,
    "frequency_penalty": -2,
    "repetition_penalty": 100,
    "top_p": 5e-324,
    "min_p": 5e-324,
}


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_values_run(folder, name):
    values = {"max_tokens": MAX_LENGTH if name == "min_tokens" else 3, "ignore_eos": True} | {
        name: LARGEST[name]
    }
    llm = LLM(folder, dtype="float32")
    prompt = PROMPT * 340  # four tokens before the model's length
    (output,) = llm.generate([prompt], SamplingParams(**values), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == (4 if values["max_tokens"] == MAX_LENGTH else 3)


def test_what_is_larger_ends_no_other_request(folder):
    """Each integer of ``SamplingParams``, and what else counts: refused, and a bystander goes on."""
    integers = {field.name for field in fields(SamplingParams) if "int" in str(field.type)}
    assert integers == {
        *("n", "top_k", "seed", "stop_token_ids", "max_tokens", "min_tokens", "logprobs"),
        *("prompt_logprobs", "thinking_token_budget", "logit_bias", "allowed_token_ids"),
    }

    async def bystander():
        async with AsyncLLM(folder, dtype="float32") as served:

            async def ask(prompt, first_index=0, **values):
                params = SamplingParams(ignore_eos=True, **values)
                outputs = served.generate(prompt, params, first_index=first_index)
                return [len(output.completion.token_ids) async for output in outputs]

            task = asyncio.create_task(ask(PROMPT, max_tokens=150))
            while not served.num_running:
                await asyncio.sleep(0.005)
            for huge in (MAX_COUNT + 1, 2**63, 2**64, 10**30):
                for name in sorted(integers - {"seed"}):
                    if name == "max_tokens" and huge <= MAX_LENGTH:
                        continue
                    values = {"stop_token_ids": [huge], "allowed_token_ids": [huge], "logit_bias": {huge: 1}}
                    value = values.get(name, huge)
                    with pytest.raises(ConfigError, match=f"^{name}: "):
                        await ask([9], **{name: value})
                with pytest.raises(ConfigError, match="first_index"):
                    await ask([9], first_index=huge)
                with pytest.raises(ConfigError, match="prompts"):
                    await ask([9, huge])
            with pytest.raises(ConfigError, match="seed"):
                await ask([9], seed=2**64)
            with pytest.raises(ConfigError, match="n: "):
                await ask([9], n=MAX_N + 1)
            return await task

    assert asyncio.run(bystander()) == [150]
