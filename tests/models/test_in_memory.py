"""A model in memory: its weights are shared, its tokens are those of its folder, and it stays as it is."""

from __future__ import annotations

import pytest
import torch
import transformers

from treeshare import LLM, SamplingParams
from treeshare.errors import ConfigError, UnsupportedModelError

PROMPT = list(range(3, 24))
PARAMS = SamplingParams(n=3, max_tokens=12, temperature=1, seed=1, ignore_eos=True, logprobs=1)


def outputs(llm):
    """Everything that a prompt's completions are."""
    return [(o.token_ids, o.logprobs) for o in llm.generate([PROMPT], PARAMS, use_tqdm=False)[0].outputs]


@pytest.fixture
def own(model_dir):
    return transformers.AutoModelForCausalLM.from_pretrained(model_dir("llama"), dtype="float32")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_it_stays_as_it_is(model_dir, architecture):
    folder = model_dir(architecture)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attention, ids = model.config._attn_implementation, torch.tensor([PROMPT])
    with LLM(model) as llm:
        shared = dict(llm.model.named_parameters())
        assert all(p.data_ptr() == shared[n].data_ptr() for n, p in model.named_parameters())
        assert outputs(llm) == outputs(LLM(folder, dtype="float32"))
    assert model.training
    assert model.config._attn_implementation == attention
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model(ids).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_weights_that_changed_are_taken(own, model_dir):
    llm = LLM(own)
    before = outputs(llm)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.mul_(0.5)
    llm.update_weights(own.state_dict())
    after = outputs(llm)
    assert after != before
    assert after == outputs(LLM(own))


def test_what_is_refused(own):
    with pytest.raises(ConfigError, match="expected all in float32 or bfloat16, as dtype says"):
        LLM(own, dtype="bfloat16")
    with pytest.raises(ConfigError, match="quantization: got 'int8', expected None"):
        LLM(own, quantization="int8")
    with pytest.raises(UnsupportedModelError, match="Linear is not a causal language model"):
        LLM(torch.nn.Linear(2, 2))
    own.model.norm.weight.data = own.model.norm.weight.data.half()
    with pytest.raises(ConfigError, match="weights in float16, float32"):
        LLM(own)
