"""A completion's bits are its request's own, in any company, where the compiled kernels run.

Prompts of every depth, with nodes' borders at and beside the borders of blocks of keys; tokens and
log-probabilities are compared to the last bit.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.engine.forests import requests_for, rows_taken_away
from tests.kernel_levels import ENGINE_LEVELS_AND_DTYPES, LEVELS, using_kernels
from tests.models.mixtures import CONFIGS as MIXTURE_CONFIGS
from tests.models.mixtures import make_mixture
from treeshare.attention import key_blocks
from treeshare.config import EngineConfig, FoldCost
from treeshare.engine.async_llm import AsyncLLM
from treeshare.engine.engine import Engine
from treeshare.engine.llm import LLM
from treeshare.models import binding, load_model
from treeshare.native.structs import KEY_BLOCK
from treeshare.sampling import SamplingParams

PARAMS = SamplingParams(n=3, temperature=1.0, max_tokens=9, logprobs=2, ignore_eos=True)
EAGER = FoldCost(launch_cost=0, merge_cost=0)
"""Every shared token becomes part of a node."""

CONFIG = EngineConfig(page_size=16, fold_cost=EAGER)
CONFIGS = {
    "few rows": replace(CONFIG, max_num_seqs=2),
    "rows of their own": replace(CONFIG, lazy_divergence=False),
    "sharing off": replace(CONFIG, sharing="none"),
    "one level": replace(CONFIG, sharing="one-level"),
    "nothing folded": replace(CONFIG, fold=False),
    "costly nodes": replace(CONFIG, fold_cost=FoldCost(launch_cost=500, merge_cost=16)),
    "long chunks": replace(CONFIG, prefill_chunk=64),
    "nodes kept": replace(CONFIG, keep_nodes=True),
}


def is_slow(depth, dtype):
    """Depths 5 and 6, one for each architecture, have all places."""
    return depth != (6 if dtype == "bfloat16" else 5)


CASES = [
    pytest.param(
        depth, *case.values, marks=[*case.marks, *[pytest.mark.slow] * is_slow(depth, case.values[1])]
    )
    for case in ENGINE_LEVELS_AND_DTYPES
    for depth in range(7)
]


def forest(depth):
    """A prompt of 600 tokens and others that leave it at ``depth`` places, at and beside blocks' borders."""
    draws = np.random.default_rng(depth)
    prompt = draws.integers(2, 160, 600).tolist()
    cuts = [KEY_BLOCK - 1, KEY_BLOCK, KEY_BLOCK + 1, 2 * KEY_BLOCK, 70, 599][:depth]
    others = [prompt[:cut] + draws.integers(2, 160, 5 + 90 * (cut % 2)).tolist() for cut in cuts]
    return [prompt, *others, draws.integers(2, 160, 30).tolist()]


def bits(completion):
    return completion.token_ids, completion.cumulative_logprob, completion.logprobs


def run(engine, requests):
    found = {(c.request_index, c.completion_index): bits(c) for c in engine.run(requests)}
    engine.clear()
    return found


def arriving(engine, requests):
    """The first prompt decodes already when the others come, one after another."""
    engine.add_request(requests[0])
    waiting, finished = list(requests[1:]), []
    for _ in range(4):
        finished += engine.step().finished
    while not engine.is_idle or waiting:
        if waiting:
            index = engine.add_request(waiting.pop(0))
        finished += engine.step().finished
    assert index == len(requests) - 1
    engine.clear()
    return {(c.request_index, c.completion_index): bits(c) for c in finished}


def tight(loaded, requests):
    """A budget so small that completions wait for memory."""
    longest = max(len(request.prompt_token_ids) for request in requests)
    budget = (longest + 300) * loaded.geometry.bytes_per_token
    engine = Engine(loaded, replace(CONFIG, kv_budget_bytes=budget), check_invariants=True)
    return run(engine, requests)


def preempted(engine, requests):
    with rows_taken_away():
        found = run(engine, requests)
    assert engine.stats.num_preemptions > 0
    return found


def alone(engine, requests):
    return {
        (i, index): found
        for i, request in enumerate(requests)
        for (_, index), found in run(engine, [request]).items()
    }


def backwards(engine, requests):
    found = run(engine, requests[::-1])
    return {(len(requests) - 1 - i, index): bits for (i, index), bits in found.items()}


def asked_for(engine, requests, indices):
    return run(engine, [replace(request, completion_indices=indices) for request in requests])


def ways(loaded, engine, requests):
    """Other ways to run the same requests, by name: each gives the completions by request and index."""
    return {
        **{
            name: lambda config=config: run(Engine(loaded, config), requests)
            for name, config in CONFIGS.items()
        },
        "alone": lambda: alone(engine, requests),
        "another order": lambda: backwards(engine, requests),
        "more completions": lambda: asked_for(engine, requests, range(7)),
        "fewer completions": lambda: asked_for(engine, requests, [1]),
        "arrivals": lambda: arriving(engine, requests),
        "a tight budget": lambda: tight(loaded, requests),
        "rows taken away": lambda: preempted(engine, requests),
    }


def differing(loaded, depth, names=None):
    """By way, of all or those with these names, how many completions have other bits than together."""
    engine = Engine(loaded, CONFIG, check_invariants=True)
    requests = requests_for(forest(depth), PARAMS)
    together = run(engine, requests)
    assert len(together) == PARAMS.n * len(requests)
    found = {}
    others = ways(loaded, engine, requests)
    for name in names or others:
        other = others[name]()
        common = together.keys() & other.keys()
        assert len(common) >= len(requests), name
        found[name] = sum(together[key] != other[key] for key in common)
    return {name: number for name, number in found.items() if number}


@pytest.mark.parametrize(("depth", "level", "dtype"), CASES)
def test_bits_are_the_requests_own(model_dir, dtype, level, depth, monkeypatch):
    architecture = ("llama", "qwen3")[depth % 2]
    if architecture == "qwen3":
        monkeypatch.setattr(binding, "fuse_layers", lambda *_: ([], "its own code is tested"))
    with using_kernels(level):
        assert differing(load_model(model_dir(architecture), dtype), depth) == {}


MIXTURES = [pytest.param(name, marks=[pytest.mark.slow] * (name != "qwen2_moe")) for name in MIXTURE_CONFIGS]


@pytest.mark.skipif(not LEVELS, reason="no kernels, or none for this CPU")
@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_of_experts(tmp_path, family):
    """Rows that choose the same experts are no company; in bfloat16, where sums show their order.

    Phi-MoE's routers leave out scores below a threshold: in bfloat16 two attentions of transformers differ.
    """
    dtype = "float32" if family == "phimoe" else "bfloat16"
    make_mixture(family, getattr(torch, dtype)).save_pretrained(tmp_path)
    assert differing(load_model(tmp_path, dtype), 3, ["alone", "few rows"]) == {}


@pytest.mark.parametrize(("level", "dtype"), ENGINE_LEVELS_AND_DTYPES)
def test_requests_from_coroutines(model_dir, dtype, level):
    """Each prompt comes while those before it decode; the answers are those of ``generate``, each alone."""
    prompts = forest(4)

    async def arrive(llm):
        async def later(live, place, prompt):
            await asyncio.sleep(0.01 * place)
            found = [output.completion async for output in live.generate(prompt, PARAMS)]
            return sorted(found, key=lambda completion: completion.index)

        async with AsyncLLM(llm) as live:
            return await asyncio.gather(
                *(later(live, place, live_prompt(prompt)) for place, prompt in enumerate(prompts))
            )

    with using_kernels(level):
        llm = LLM(model_dir("llama"), dtype=dtype, fold_cost=EAGER)
        alone = [llm.generate(live_prompt(p), PARAMS, use_tqdm=False)[0].outputs for p in prompts]
        assert asyncio.run(arrive(llm)) == alone


def live_prompt(tokens):
    return {"prompt_token_ids": tokens}


@pytest.mark.parametrize(("level", "dtype"), ENGINE_LEVELS_AND_DTYPES)
def test_blocks_that_begin_with_their_nodes_are_found(model_dir, monkeypatch, dtype, level):
    """The positive control: as it was before, a node's blocks began where the node begins."""

    def shared(layout, part, decode_rows):
        segment, first_row, last_row = part
        yield key_blocks.BlockSlice(first_row, last_row, (key_blocks.Piece(segment, 0, segment.num_tokens),))

    def causal(chunk):
        parts = (key_blocks.Piece(chunk.segment, 0, chunk.end),)
        return key_blocks.BlockSlice(chunk.first_row, chunk.last_row, parts, chunk.start)

    monkeypatch.setattr(key_blocks, "_shared", shared)
    monkeypatch.setattr(key_blocks, "_causal", causal)
    with using_kernels(level):
        assert differing(load_model(model_dir("llama"), dtype), 3, ["alone"])


@pytest.mark.parametrize(("level", "dtype"), ENGINE_LEVELS_AND_DTYPES)
def test_scores_and_searches_do_not_know_their_company(model_dir, dtype, level):
    with using_kernels(level):
        llm = LLM(model_dir("llama"), dtype=dtype, fold_cost=EAGER)
        prompts = forest(6)
        pairs = [(prompt[:-4], prompt[-4:]) for prompt in prompts]
        together = llm.score(pairs, use_tqdm=False)
        assert together == [score for pair in pairs for score in llm.score([pair], use_tqdm=False)]
        few = LLM(model_dir("llama"), dtype=dtype, fold_cost=EAGER, max_num_seqs=2)
        assert together == few.score(pairs[::-1], use_tqdm=False)[::-1]
        found = []
        for widths in ((2,), (40, 2, 90)):  # other branches beside the two that are looked at
            with llm.search(prompts[0]) as search:
                for width in widths:
                    first = search.extend([(search.root, token) for token in range(2, 2 + width)])
                found.append([branch.logprobs.tolist() for branch in first[:2]])
                search.drop(first)
        assert found[0] == found[1]
