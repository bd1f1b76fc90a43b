"""Prompts of many shapes and the plain way to complete them."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from treeshare.config import EngineConfig
from treeshare.engine.engine import Engine
from treeshare.engine.scheduler import Scheduler
from treeshare.engine.sequence import Request
from treeshare.models import load_model
from treeshare.sampling import SamplingParams, problem_key


def random_prompts(shape, seed=0, vocab_size=160):
    """Prompts of a tree given by segment lengths: ``(length, [children])``; a leaf has no children."""
    rng = np.random.default_rng(seed)
    prompts = []

    def walk(node, prefix):
        length, children = node
        tokens = prefix + rng.integers(2, vocab_size, length).tolist()
        if not children:
            prompts.append(tokens)
        for child in children:
            walk(child, tokens)

    walk(shape, [])
    return prompts


LEAF = []
FORESTS = {
    "depth 0": random_prompts((7, LEAF)),
    "depth 1": random_prompts((90, [(5, LEAF), (70, LEAF), (33, LEAF)])),
    "depth 2": random_prompts((64, [(20, [(3, LEAF), (9, LEAF)]), (130, [(65, LEAF), (1, LEAF)])])),
    "depth 3": random_prompts((30, [(40, [(50, [(6, LEAF), (7, LEAF)]), (8, LEAF)]), (9, LEAF)])),
    "depth 4": random_prompts(
        (20, [(70, [(70, [(70, [(4, LEAF), (80, LEAF)]), (5, LEAF)]), (6, LEAF)]), (3, LEAF)])
    ),
    "a prefix of another": random_prompts((300, LEAF)) * 2 + [random_prompts((300, LEAF))[0][:100]],
    "no sharing": random_prompts((0, [(40, LEAF), (41, LEAF), (1, LEAF)])),
}


def requests_for(prompts, params, seed=0):
    return [
        Request(
            prompt_token_ids=prompt,
            params=params,
            problem_key=problem_key(i),
            seed=seed,
            completion_indices=range(params.n),
        )
        for i, prompt in enumerate(prompts)
    ]


def run(folder, requests, *, dtype="float32", check_invariants=True, **config):
    """All completions of ``requests``, by request and index."""
    engine = Engine(load_model(folder, dtype), EngineConfig(**config), check_invariants=check_invariants)
    return collect(engine, requests)


def collect(engine, requests):
    return {(c.request_index, c.completion_index): c for c in engine.run(requests)}


def tokens_of(completions):
    return {key: completion.token_ids for key, completion in completions.items()}


@torch.inference_mode()
def greedy_by_transformers(model, prompt, num_tokens):
    """What transformers' own ``generate`` gives for one prompt alone."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


GREEDY = SamplingParams(n=2, temperature=0, max_tokens=12, ignore_eos=True)


@contextlib.contextmanager
def rows_taken_away():
    """Inside, running sequences are preempted again and again, whatever memory there is."""
    make_room, calls = Scheduler._make_room, []

    def rude(self):
        calls.append(None)
        if len(calls) % 3 == 0 and len(calls) < 60 and len(self.running) > 1:
            self._preempt(self.running[len(calls) % len(self.running)])
        make_room(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "_make_room", rude)
        yield


def assert_bits_are_the_requests_own(engine, requests, others, run):
    """Alone, resumed, with more completions, without lazy divergence, few rows, rows taken away: the same.

    Args:
        engine: Makes an engine of a configuration's changes.
        requests: Four completions of each of three prompts.
        others: Requests that run beside them.
        run: From an engine and requests to a mapping of their completions' bits.
    """
    usual = engine()
    together = run(usual, requests)
    assert len(together) == 12
    assert run(usual, [*requests, *others]).items() >= together.items()
    assert run(engine(lazy_divergence=False), requests) == together
    assert run(engine(max_num_seqs=3), requests) == together
    with rows_taken_away():
        assert run(usual, requests) == together
    more = run(usual, [replace(request, completion_indices=range(6)) for request in requests])
    assert more.items() >= together.items()
    rest = run(usual, [replace(request, completion_indices=[3, 1]) for request in requests])
    assert rest.items() <= together.items()
    for i, request in enumerate(requests):
        alone = run(usual, [request])
        assert {(i, index): found for (_, index), found in alone.items()}.items() <= together.items()
