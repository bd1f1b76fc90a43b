"""The engine over the Triton backend, interpreted: transformers' own tokens, whatever the tree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import transformers

from tests.engine.forests import FORESTS, GREEDY, greedy_by_transformers, requests_for, run, tokens_of

pytest.importorskip("triton", reason="Triton is not installed")

CASES = [
    pytest.param("llama", "depth 0", 3, id="llama-depth 0"),
    *(
        pytest.param(model, forest, GREEDY.max_tokens, id=f"{model}-{forest}", marks=pytest.mark.slow)
        for model in ("llama", "gpt2", "qwen3")
        for forest in ("depth 2", "depth 4", "no sharing")
    ),
]


@pytest.mark.parametrize(("architecture", "forest", "num_tokens"), CASES)
def test_greedy_is_transformers_own(model_dir, architecture, forest, num_tokens):
    folder, prompts = model_dir(architecture), FORESTS[forest]
    own = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    params = replace(GREEDY, n=1, max_tokens=num_tokens)
    got = tokens_of(run(folder, requests_for(prompts, params), backend="triton", page_size=16, fold=False))
    for i, prompt in enumerate(prompts):
        assert got[i, 0] == greedy_by_transformers(own, prompt, num_tokens)
