"""A completion depends on its model, prompt, parameters, seed, problem and index, and on nothing else."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import transformers

from tests.engine.forests import (
    FORESTS,
    GREEDY,
    collect,
    greedy_by_transformers,
    requests_for,
    run,
    tokens_of,
)
from tests.models.tiny import ARCHITECTURES
from tests.turns import by_turns
from treeshare.config import EngineConfig
from treeshare.engine.engine import Engine
from treeshare.models import load_model
from treeshare.sampling import SamplingParams

SAMPLED = SamplingParams(n=5, temperature=1.0, max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def engines(model_dir):
    made = {}

    def get(architecture, **config):
        key = (architecture, tuple(sorted(config.items())))
        if key not in made:
            made[key] = Engine(
                load_model(model_dir(architecture), "float32"), EngineConfig(**config), check_invariants=True
            )
        return made[key]

    return get


@pytest.fixture(scope="module")
def own_model(model_dir):
    """The same model, as transformers runs it."""
    return functools.cache(
        lambda architecture: transformers.AutoModelForCausalLM.from_pretrained(
            model_dir(architecture), dtype="float32"
        )
    )


@pytest.mark.parametrize(("architecture", "forest"), by_turns(ARCHITECTURES, FORESTS, every=3))
def test_greedy_is_transformers_own(engines, own_model, architecture, forest):
    prompts = FORESTS[forest]
    own = own_model(architecture)
    got = tokens_of(collect(engines(architecture, page_size=16, fold=False), requests_for(prompts, GREEDY)))
    for i, prompt in enumerate(prompts):
        expected = greedy_by_transformers(own, prompt, GREEDY.max_tokens)
        assert got[i, 0] == got[i, 1] == expected


@pytest.mark.parametrize(
    ("architecture", "forest", "sharing"), by_turns(["llama", "gpt2"], FORESTS, ["one-level", "none"])
)
def test_sharing_changes_no_token(engines, architecture, forest, sharing):
    requests = requests_for(FORESTS[forest], SAMPLED)
    expected = tokens_of(collect(engines(architecture, page_size=16, fold=False), requests))
    assert (
        tokens_of(collect(engines(architecture, page_size=16, fold=False, sharing=sharing), requests))
        == expected
    )


@pytest.mark.parametrize(
    ("forest", "config"),
    by_turns(
        ["depth 1", "depth 4", "no sharing"],
        [
            {"max_num_seqs": 3},
            {"fold": True},
            {"prefill_chunk": 16},
            {"lazy_divergence": False},
            {"page_size": 64},
        ],
    ),
)
def test_scheduling_changes_no_token(engines, forest, config):
    requests = requests_for(FORESTS[forest], SAMPLED)
    expected = tokens_of(collect(engines("llama", page_size=16, fold=False), requests))
    assert (
        tokens_of(collect(engines("llama", **({"page_size": 16, "fold": False} | config)), requests))
        == expected
    )


def test_alone_as_in_company(engines):
    """A completion alone, with its siblings, with other problems."""
    engine = engines("llama", page_size=16, fold=False)
    requests = requests_for(FORESTS["depth 2"], SAMPLED)
    together = tokens_of(collect(engine, requests))
    for i, request in enumerate(requests):
        assert tokens_of(collect(engine, [replace(request, completion_indices=[3])]))[0, 3] == together[i, 3]
        siblings = tokens_of(collect(engine, [request]))
        assert siblings == {(0, index): together[i, index] for index in range(SAMPLED.n)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_has_the_same_bits(model_dir, dtype):
    """What is left of a run, with whatever rows, gives the same log-probabilities to the last bit."""
    requests = requests_for(FORESTS["depth 3"], replace(SAMPLED, n=12))
    whole = run(model_dir("qwen2"), requests, dtype=dtype)
    left = [
        replace(request, completion_indices=[i for i in range(12) if (i + shift) % 3 == 0])
        for shift, request in enumerate(requests)
    ]
    left[1] = replace(left[1], completion_indices=[])
    resumed = run(model_dir("qwen2"), left, dtype=dtype, lazy_divergence=False)
    assert resumed
    for key, completion in resumed.items():
        assert completion == whole[key]


def test_more_completions_extend_fewer(engines):
    engine = engines("llama", page_size=16, fold=False)
    few = collect(engine, requests_for(FORESTS["depth 2"], SAMPLED))
    many = collect(engine, requests_for(FORESTS["depth 2"], replace(SAMPLED, n=9)))
    assert {key: tokens for key, tokens in tokens_of(many).items() if key in few} == tokens_of(few)


def test_seeds_differ(engines):
    engine = engines("llama", page_size=16, fold=False)
    first, second = (
        tokens_of(collect(engine, requests_for(FORESTS["depth 1"], SAMPLED, seed=s))) for s in (1, 2)
    )
    assert first != second


def test_the_reference_backend_gives_the_same_tokens(model_dir):
    """The definition of attention, in float64, runs a whole engine too."""
    params = SamplingParams(n=2, temperature=0.8, max_tokens=6)
    expected = tokens_of(run(model_dir("llama"), requests_for(FORESTS["depth 2"], params)))
    got = run(model_dir("llama"), requests_for(FORESTS["depth 2"], params), backend="reference")
    assert tokens_of(got) == expected
