"""The version of the arithmetic: a change of a completion's bits that does not raise it fails here.

The model and its inputs are made of whole numbers and float64, so that nothing but the kernels, and what
transformers computes around them, decides the bits.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from tests.engine.forests import requests_for
from tests.kernel_levels import LEVEL_PARAMS, LEVELS_AND_DTYPES, PORTABLE_CODES, portable_by, using_kernels
from tests.turns import slow_but
from treeshare.config import ARITHMETIC, EngineConfig
from treeshare.engine.engine import Engine
from treeshare.models.loading import load_model
from treeshare.sampling import SamplingParams

HASHES = {
    (4, "amx", "bfloat16"): "c7e30e0a39397c4d",
    (4, "avx512", "bfloat16"): "422f21028076cb39",
    (4, "avx512f", "bfloat16"): "301eae87b583a8f8",
    (4, "avx2", "bfloat16"): "301eae87b583a8f8",
    (4, "portable", "bfloat16"): "301eae87b583a8f8",
    (4, "amx", "float32"): "a9a904f66eee268c",
    (4, "avx512", "float32"): "a9a904f66eee268c",
    (4, "avx512f", "float32"): "a9a904f66eee268c",
    (4, "avx2", "float32"): "a9a904f66eee268c",
    (4, "portable", "float32"): "444439a2747c5cb4",
}
"""By version, level and dtype, of ``fixed_run``. After an intended change of bits raise the version, run
this test, and put in what it finds. Old versions go."""

PARAMS = SamplingParams(n=3, temperature=0.9, top_p=0.95, max_tokens=80, ignore_eos=True)

FILTERED = SamplingParams(
    n=3, temperature=1.4, min_p=0.2, top_k=30, top_p=0.9, max_tokens=40, ignore_eos=True
)

ENDING = SamplingParams(
    n=8, temperature=1.1, max_tokens=40, min_tokens=12, ignore_eos=True, stop_token_ids=range(0, 300, 9)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of the Llama shape whose weights are multiples of 1/256 that repeat after 8191 numbers."""
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    first = 0
    for name, parameter in sorted(model.named_parameters()):
        numbers = (np.arange(first, first + parameter.numel()) * 5087 % 8191 % 127 - 63) / 256
        if "norm" in name:
            numbers = 1 + numbers / 4
        parameter.data = torch.tensor(numbers, dtype=torch.float32).view(parameter.shape)
        first += parameter.numel()
    path = tmp_path_factory.mktemp("fixed")
    model.save_pretrained(path)
    return path


def exact_positions(model):
    """Rotary tables from float64: a CPU's own sine decides no bit."""
    rotary = model.model.rotary_emb

    def forward(x, position_ids):
        frequencies = 10000.0 ** -(np.arange(0, 16, 2) / 16)
        angles = position_ids.double().numpy()[..., None] * np.concatenate([frequencies, frequencies])
        return tuple(torch.tensor(table(angles)).to(x.dtype) for table in (np.cos, np.sin))

    rotary.forward = forward


def fixed_run(folder, dtype, params=(PARAMS, FILTERED, ENDING), **config):
    """A hash of a run's tokens and log-probabilities: prompts of 1 to 700 tokens on a tree."""
    loaded = load_model(folder, dtype)
    exact_positions(loaded.model)
    base = [2 + i * 37 % 290 for i in range(700)]
    prompts = [base, base[:300], [*base[:513], 5, 6], [7, *base[:20]], [9]]
    engine = Engine(loaded, EngineConfig(max_num_seqs=64, **config))
    requests = [request for each in params for request in requests_for(prompts, each)]
    found = sorted(
        (
            completion.request_index,
            completion.completion_index,
            completion.token_ids,
            completion.cumulative_logprob.hex(),
        )
        for completion in engine.run(requests)
    )
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("level", "dtype"), LEVELS_AND_DTYPES)
def test_bits_are_those_of_the_version(folder, level, dtype):
    with using_kernels(level):
        found = fixed_run(folder, dtype)
    assert HASHES.get((ARITHMETIC, level, dtype)) == found, "bits have changed: see HASHES"


@pytest.mark.parametrize("code", slow_but(PORTABLE_CODES[:1], PORTABLE_CODES))
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bits_of_portable_are_those_of_the_version(folder, dtype, code):
    """Whatever serves it; the rotary tables are those of ``exact_positions``."""
    with portable_by(code):
        found = fixed_run(folder, dtype)
    assert HASHES.get((ARITHMETIC, "portable", dtype)) == found, "bits have changed: see HASHES"


@pytest.mark.parametrize("level", LEVEL_PARAMS[:1])
@pytest.mark.parametrize(
    ("config", "params"),
    [
        pytest.param({"page_size": 32}, (PARAMS, FILTERED, ENDING), marks=pytest.mark.slow),
        pytest.param({}, (PARAMS, replace(FILTERED, min_p=0.0), ENDING), marks=pytest.mark.slow),
        ({}, (PARAMS, FILTERED, replace(ENDING, min_tokens=ENDING.min_tokens - 1))),
    ],
)
def test_a_change_of_bits_is_found(folder, level, config, params):
    """The positive control: pages of another size are other blocks; a filter or one banned token less."""
    with using_kernels(level):
        assert fixed_run(folder, "float32", params, **config) != HASHES[ARITHMETIC, level, "float32"]
