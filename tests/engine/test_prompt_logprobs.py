"""A prompt's log-probabilities are ``score``'s to the last bit, each shared token computed once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tests.engine.forests import requests_for
from treeshare.config import EngineConfig, FoldCost
from treeshare.engine import prompt_scores
from treeshare.engine.async_llm import AsyncLLM
from treeshare.engine.engine import Engine
from treeshare.engine.llm import LLM
from treeshare.engine.scoring import score
from treeshare.models import load_model
from treeshare.sampling import SamplingParams

RNG = np.random.default_rng(11)


def tokens(count):
    return RNG.integers(2, 160, count).tolist()


HEAD = tokens(70)
MIDDLE = HEAD + tokens(33)
PROMPTS = [
    HEAD,  # ends where others go on
    HEAD + tokens(1),
    HEAD + tokens(16),
    *(MIDDLE + tokens(n) for n in (5, 17, 40)),
    MIDDLE + tokens(2),
    MIDDLE[:90] + tokens(30),
    tokens(1),
    tokens(2),
    tokens(17),
]
EAGER = FoldCost(launch_cost=0, merge_cost=0)
CONFIG = EngineConfig(page_size=16, fold_cost=EAGER)
CONFIGS = {
    "nodes": CONFIG,
    "few rows": replace(CONFIG, max_num_seqs=2),
    "sharing off": replace(CONFIG, sharing="none"),
    "costly nodes": replace(CONFIG, fold_cost=FoldCost(launch_cost=500, merge_cost=16)),
    "long chunks": replace(CONFIG, prefill_chunk=64),
    "nodes kept": replace(CONFIG, keep_nodes=True),
}
PARAMS = SamplingParams(n=3, max_tokens=4, prompt_logprobs=2, ignore_eos=True)


@pytest.fixture(scope="module")
def loaded(model_dir):
    return load_model(model_dir("llama"), "float32")


@pytest.fixture(scope="module")
def expected(loaded):
    """Log-probabilities by ``score``."""
    engine = Engine(loaded, CONFIG)
    return [s.logprobs for s in score(engine, [(p[:1], p[1:]) for p in PROMPTS], lambda _: None)]


def run(engine, prompts, params):
    """Each prompt's log-probabilities, and each completion's tokens."""
    found, drawn = {}, {}
    for completion in engine.run(requests_for(prompts, params)):
        key = completion.request_index
        assert found.setdefault(key, completion.prompt_logprobs) is completion.prompt_logprobs
        drawn[key, completion.completion_index] = completion.token_ids
    return [found[i] for i in range(len(prompts))], drawn


def check(found, prompts, by_score, num_top):
    for entries, prompt, values in zip(found, prompts, by_score, strict=True):
        assert len(entries) == len(prompt)
        assert entries[0] is None
        for row, token, value in zip(entries[1:], prompt[1:], values, strict=True):
            assert (row[0].token_id, row[0].logprob) == (token, value)
            likeliest = sorted(row, key=lambda entry: entry.rank)[:num_top]
            assert [entry.rank for entry in likeliest] == list(range(1, num_top + 1))
            assert all(a.logprob >= b.logprob for a, b in pairwise(likeliest))
            assert len(row) == num_top + (row[0].rank > num_top)


@pytest.mark.parametrize("name", CONFIGS)
def test_they_are_scores_to_the_last_bit_and_change_no_completion(loaded, expected, name):
    engine = Engine(loaded, CONFIGS[name], check_invariants=True)
    found, drawn = run(engine, PROMPTS, PARAMS)
    check(found, PROMPTS, expected, 2)
    again, drawn_again = run(engine, PROMPTS, replace(PARAMS, prompt_logprobs=0))
    check(again, PROMPTS, expected, 0)
    _, plain = run(engine, PROMPTS, replace(PARAMS, prompt_logprobs=None))
    assert drawn == drawn_again == plain


@pytest.mark.usefixtures("private_cache")
def test_int8_weights(model_dir):
    """Scores to the last bit there, too; and others than those of the weights unrounded."""
    found = {}
    for kind in ("int8", None):
        loaded = load_model(model_dir("llama"), "float32", quantization=kind)
        by_score = [
            s.logprobs
            for s in score(Engine(loaded, CONFIG), [(p[:1], p[1:]) for p in PROMPTS], lambda _: None)
        ]
        for config in (CONFIG, CONFIGS["sharing off"]):
            engine = Engine(loaded, config, check_invariants=True)
            found[kind], _ = run(engine, PROMPTS, PARAMS)
            check(found[kind], PROMPTS, by_score, 2)
    assert found["int8"][0][1][0].logprob != found[None][0][1][0].logprob


def test_each_shared_token_is_computed_once(loaded):
    engine = Engine(loaded, CONFIG)
    run(engine, PROMPTS, replace(PARAMS, prompt_logprobs=None))
    num_plain = engine.stats.prefilled_tokens
    run(engine, PROMPTS, PARAMS)
    assert engine.stats.prefilled_tokens == num_plain


def test_prompts_that_come_again_or_later_or_ask_for_more(loaded, expected):
    """Kept nodes give what they know, and compute again what they do not."""
    engine = Engine(loaded, replace(CONFIG, keep_nodes=True, prefill_chunk=16), check_invariants=True)
    run(engine, PROMPTS[:3], replace(PARAMS, prompt_logprobs=None))
    for prompts, values, num_top in (
        (PROMPTS[3:5], expected[3:5], 1),
        (PROMPTS[:5], expected[:5], 1),
        (PROMPTS, expected, 0),
        (PROMPTS, expected, 5),
    ):
        found, _ = run(engine, prompts, replace(PARAMS, prompt_logprobs=num_top))
        check(found, prompts, values, num_top)
    num_tokens = engine.stats.prefilled_tokens
    found, _ = run(engine, PROMPTS, replace(PARAMS, prompt_logprobs=3))
    check(found, PROMPTS, expected, 3)
    # Of a prompt that is known, only the chunk with its last token comes again: completions start there.
    assert engine.stats.prefilled_tokens <= 16 * len(PROMPTS) < num_tokens


def test_requests_that_join_leave_and_are_preempted(loaded, expected):
    """Asked for or not, a step apart, some cancelled: nobody's values change, nothing is left."""
    budget = Engine(loaded, CONFIG).store.segments.bytes_of(1000)
    config = replace(CONFIG, kv_budget_bytes=budget, keep_nodes=True, max_num_seqs=6)
    engine = Engine(loaded, config, check_invariants=True)
    params = replace(PARAMS, max_tokens=20)
    found = {}
    indices = []
    for i, prompt in enumerate([*PROMPTS, *PROMPTS]):
        own = params if i % 3 else replace(params, prompt_logprobs=None)
        indices += engine.add_requests(requests_for([prompt], own))
        for completion in engine.step().finished:
            found[completion.request_index] = completion.prompt_logprobs
        if i % 4 == 3:
            engine.cancel(indices[-1])
    while not engine.is_idle:
        for completion in engine.step().finished:
            found[completion.request_index] = completion.prompt_logprobs
    num_checked = 0
    for i, index in enumerate(indices):
        if i % 3 and i % 4 != 3:
            check([found[index]], [PROMPTS[i % len(PROMPTS)]], [expected[i % len(PROMPTS)]], 2)
            num_checked += 1
        elif index in found and not i % 3:
            assert found[index] is None
    assert num_checked > 8
    assert engine.stats.num_preemptions or engine.stats.num_cancelled
    for node in engine._residency.forest.nodes():
        assert node.scores is None or not node.scores.wanted


def test_new_weights_give_new_values(loaded, model_dir):
    own = load_model(model_dir("llama"), "float32")
    engine = Engine(own, replace(CONFIG, keep_nodes=True), check_invariants=True)
    before, _ = run(engine, PROMPTS[:2], PARAMS)
    weights = {"lm_head.weight": own.model.get_output_embeddings().weight.detach() * 0.5}
    engine.update_weights(weights)
    after, _ = run(engine, PROMPTS[:2], PARAMS)
    scored = score(engine, [(p[:1], p[1:]) for p in PROMPTS[:2]], lambda _: None)
    check(after, PROMPTS[:2], [s.logprobs for s in scored], 2)
    assert before != after


def test_through_llm_and_async_llm(model_dir, expected):
    llm = LLM(model_dir("llama"), dtype="float32", keep_nodes=True)
    params = [replace(PARAMS, prompt_logprobs=2 if i % 2 else None) for i in range(len(PROMPTS))]
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    for i, (output, values) in enumerate(zip(outputs, expected, strict=True)):
        if not i % 2:
            assert output.prompt_logprobs is None
            continue
        assert output.prompt_logprobs[0] is None
        rows = zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], values, strict=True)
        for row, token, value in rows:
            assert next(iter(row)) == token
            assert row[token].logprob == value
            assert {1, 2} <= {entry.rank for entry in row.values()}

    async def stream():
        async with AsyncLLM(llm) as served:
            return [out async for out in served.generate(PROMPTS[4], PARAMS, tokens=True)]

    given = [out.prompt_logprobs for out in asyncio.run(stream()) if out.prompt_logprobs is not None]
    assert len(given) == 2 * PARAMS.n  # with the first token, and with the whole completion
    check([given[0]], [PROMPTS[4]], [expected[4]], 2)


def test_all_of_the_vocabulary_and_ties(loaded):
    engine = Engine(loaded, CONFIG)
    ((_, row, *_),), _ = run(engine, [PROMPTS[0]], replace(PARAMS, prompt_logprobs=-1))
    assert sorted(entry.token_id for entry in row) == list(range(loaded.vocab_size))
    assert abs(np.exp([entry.logprob for entry in row]).sum() - 1) < 1e-5
    import torch

    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    tops = prompt_scores._tops(logits, logits.log_softmax(-1), 2)
    assert [ids.tolist() for ids, _ in tops] == [[1, 2], [0, 1]]
