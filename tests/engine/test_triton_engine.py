"""The engine over the Triton backend, interpreted: transformers' own tokens, whatever the tree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import transformers

from tests.engine.forests import FORESTS, GREEDY, greedy_by_transformers, requests_for, run, tokens_of

pytestmark = pytest.mark.usefixtures("quick_interpreter")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("forest", ["depth 2", "depth 4", "no sharing"])
def test_greedy_is_transformers_own(model_dir, architecture, forest):
    folder, prompts = model_dir(architecture), FORESTS[forest]
    own = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    params = replace(GREEDY, n=1)
    got = tokens_of(run(folder, requests_for(prompts, params), backend="triton", page_size=16, fold=False))
    for i, prompt in enumerate(prompts):
        assert got[i, 0] == greedy_by_transformers(own, prompt, params.max_tokens)
