"""Every token drawn is the plain inverse CDF of its uniform over transformers' own distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from tests.engine.forests import FORESTS, requests_for, run
from tests.models.tiny import make_model
from treeshare.sampling import SamplingParams, problem_key, uniforms

BORDER = 1e-4
"""A uniform this close to a border of the CDF may fall on either side: the logits are float32."""


@torch.inference_mode()
def distributions(model, prompt, generated, temperature):
    """The model's distribution at each generated position, by its own attention, in float64."""
    logits = model(torch.tensor([prompt + generated[:-1]])).logits[0, len(prompt) - 1 :].double()
    return (logits / temperature).softmax(-1).numpy(), logits.log_softmax(-1).numpy()


@pytest.mark.parametrize("forest", ["depth 1", "depth 2", "depth 4"])
@pytest.mark.parametrize("fold", [True, False])
def test_tokens_are_the_inverse_cdf(model_dir, forest, fold):
    prompts, params = FORESTS[forest], SamplingParams(n=6, temperature=0.7, max_tokens=25, ignore_eos=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir("qwen3"), dtype="float32")
    completions = run(model_dir("qwen3"), requests_for(prompts, params, seed=7), fold=fold, page_size=16)
    num_checked = 0
    for (i, index), completion in completions.items():
        tokens = completion.token_ids
        assert len(tokens) == params.max_tokens
        chances, logprobs = distributions(model, prompts[i], tokens, params.temperature)
        draws = uniforms(7, [problem_key(i)] * len(tokens), [index] * len(tokens), range(len(tokens)))
        for token, u, chance in zip(tokens, draws, chances, strict=True):
            border = chance.cumsum()
            if np.abs(border - u).min() > BORDER:
                assert token == np.searchsorted(border, u, side="right")
                num_checked += 1
        expected = logprobs[np.arange(len(tokens)), tokens].sum()
        assert abs(completion.cumulative_logprob - expected) <= len(tokens) * 1e-4
    assert num_checked > 0.9 * len(completions) * params.max_tokens


def test_the_model_is_not_trivial(model_dir):
    """The oracle says something only if distributions are neither flat nor certain."""
    model = make_model(transformers.AutoConfig.from_pretrained(model_dir("qwen3")))
    chances, _ = distributions(model, FORESTS["depth 0"][0], [5, 6, 7], 0.7)
    assert (chances.max(-1) > 0.01).all()
    assert (chances.max(-1) < 0.99).all()
