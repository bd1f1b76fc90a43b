"""The driver of several workers, on workers in this process: who dies, what is given up, what is refused."""

from __future__ import annotations

import random
import sys
import types

import pytest

from tests.cli.text_model import saved_text_model
from tests.integrations.inline_ray import RayError, inline_ray
from tests.turns import slow_but
from treeshare import LLM, SamplingParams
from treeshare.errors import BudgetError, ConfigError, RunMismatchError, WorkerError
from treeshare.integrations import ray as module
from treeshare.integrations.ray import MAX_FAILURES, RayEngine
from treeshare.sampling.logits_processor import LogitsProcessor

CLUSTER = types.SimpleNamespace(num_workers=3, threads=1, workers_per_node=3)
NO_FAULT = lambda number, name, count: None  # noqa: E731
PROMPTS = ["def f(x):", "def f(y):", "def g(", "import", "import os", "def f(x, y):"]


@pytest.fixture(scope="module", autouse=True)
def cost():
    """Measuring what steps cost takes most of a second; any cost will do."""
    flat = types.SimpleNamespace(prefill_s=lambda tokens, pairs: tokens, decode_s=lambda *rows: rows[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "step_cost_here", lambda description: flat)
        yield


@pytest.fixture(scope="module", params=slow_but(["bfloat16"], ["float32", "bfloat16", "int8"]))
def llm(tmp_path_factory, request, private_cache):
    is_int8 = request.param == "int8"
    kind = {"quantization": "int8"} if is_int8 else {"dtype": request.param}
    width = 64 if is_int8 else 32  # heads of 16, which portable arithmetic needs
    folder = saved_text_model(tmp_path_factory.mktemp("models"), hidden_size=width)
    return LLM(folder, **kind, max_num_seqs=8, threads=1)


@pytest.fixture(scope="module")
def requests(llm):
    params = SamplingParams(n=9, temperature=1.0, max_tokens=8, seed=0, logprobs=1)
    return llm.requests([llm.encode(prompt) for prompt in PROMPTS], params)


@pytest.fixture(scope="module")
def whole(llm, requests):
    return sorted(map(fields, llm.engine.run(requests)))


@pytest.fixture
def start(llm, monkeypatch):
    """A driver with workers that fail as told, and the list of its workers."""

    def started(fault=NO_FAULT, sha=None):
        ray, actors = inline_ray(fault)

        def load(model, dtype, *, quantization, max_model_len, extras):
            assert (dtype, quantization) == (llm.dtype, llm.loaded.quantization)
            assert (max_model_len, extras) == (llm.loaded.length_limit, llm.loaded.extras)
            return llm.loaded

        monkeypatch.setattr(module, "load_model", load)
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setitem(sys.modules, "ray.exceptions", ray.exceptions)
        return RayEngine(CLUSTER, llm, sha or llm.loaded.fingerprint()), actors

    return started


def fields(completion):
    return (
        completion.request_index,
        completion.completion_index,
        completion.token_ids,
        completion.text,
        completion.cumulative_logprob,
    )


def test_the_same_completions(start, requests, whole):
    engine, actors = start()
    found = list(engine.run(requests))
    assert sorted(map(fields, found)) == whole
    assert len(actors) == 3
    assert all(actor.is_dead for actor in actors)
    stats = engine.stats
    assert stats.num_finished == stats.num_completions == len(whole)
    assert stats.num_tokens == sum(len(completion.token_ids) for completion in found)
    assert stats.wall_s > 0 < stats.peak_kv_bytes


@pytest.mark.parametrize("seed", range(3))
def test_workers_that_die_now_and_then(start, requests, whole, seed, capsys):
    draws = random.Random(seed)
    lasts = [draws.randrange(1, 12) for _ in range(8)] + [10**6] * 99

    def fault(number, name, count):
        if count >= lasts[number]:
            raise RayError("killed\n by the test")

    engine, actors = start(fault)
    assert sorted(map(fields, engine.run(requests))) == whole
    num_lost = len(actors) - 3
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if "has ended (killed by the test)" in line]) >= num_lost > 0


def test_workers_that_never_bring_anything(start, requests):
    def fault(number, name, count):
        if name != "load":
            raise RayError("killed")

    engine, actors = start(fault)
    with pytest.raises(WorkerError, match=r"3 workers ended in a row on the same problems.*: killed;"):
        list(engine.run(requests))
    assert len(actors) <= 3 * MAX_FAILURES
    assert all(actor.is_dead for actor in actors)


def test_workers_that_do_not_start(start, requests):
    def fault(number, name, count):
        raise RayError("no room")

    engine, _ = start(fault)
    with pytest.raises(WorkerError, match="while they started, the last one: no room"):
        list(engine.run(requests))


def test_other_weights_are_refused(start, requests):
    engine, _ = start(sha="0" * 64)
    with pytest.raises(RunMismatchError, match="worker 0 has different weights"):
        list(engine.run(requests))


class Idle(LogitsProcessor):
    def __init__(self, *_):
        pass

    def is_argmax_invariant(self):
        return True

    def update_state(self, batch_update):
        pass

    def apply(self, logits):
        return logits


def test_logits_processors_are_refused(llm):
    """Workers would draw without them."""
    hooked = LLM(llm.model_id, dtype=llm.dtype, threads=1, logits_processors=[Idle])
    with pytest.raises(ConfigError, match="logits_processors: got some, expected none"):
        RayEngine(CLUSTER, hooked, "")


def test_what_is_asked_of_texts_reaches_the_workers(start, llm):
    """Grammars, masks and log-probabilities of prompts: the same completions as without workers."""
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    params = [
        SamplingParams(n=3, max_tokens=8, seed=0, **values)
        for values in (
            {"structured_outputs": {"regex": "[ab]{2,6}"}},
            {"bad_words": ["a"], "allowed_token_ids": list(range(60, 80)), "logit_bias": {66: 4}},
            {"prompt_logprobs": 2},
        )
    ]
    prompts = [llm.encode(prompt) for prompt in PROMPTS]
    requests = llm.requests(prompts, [params[i % 3] for i in range(len(prompts))])

    def found(engine):
        return sorted((*fields(c), repr(c.prompt_logprobs)) for c in engine.run(requests))

    engine, _ = start()
    assert found(engine) == found(llm.engine)


def test_what_rounds_differently_is_told(start, requests, whole, monkeypatch, capsys):
    engine, _ = start()
    told = iter([{"threads": "2"}, *[{"threads": "1"}] * 9])
    monkeypatch.setattr(module, "computation", lambda engine: next(told))
    assert sorted(map(fields, engine.run(requests))) == whole
    assert "worker 0 may round differently: threads 2 instead of 1" in capsys.readouterr().err


def test_a_workers_refusal_is_ours(start, llm, requests, monkeypatch):
    engine, _ = start()
    monkeypatch.setattr(module, "default_kv_budget_bytes", lambda: 4096)
    with pytest.raises(BudgetError, match="kv_budget_bytes: got 1365"):
        list(engine.run(requests))


def test_a_problem_is_given_up(start, requests, whole):
    engine, _ = start()
    found, given_up = [], {}
    for completion in engine.run(requests):
        found.append(fields(completion))
        index = completion.request_index
        if index in (0, 5) and index not in given_up:
            given_up[index] = engine.cancel(index)
    assert set(given_up) == {0, 5}
    assert sorted(found) == [entry for entry in whole if entry in found]
    for index in range(len(PROMPTS)):
        assert len([entry for entry in found if entry[0] == index]) + given_up.get(index, 0) == 9
    assert sum(given_up.values()) == engine.stats.num_cancelled > 0


def test_left_early_all_workers_end(start, requests):
    engine, actors = start()
    completions = engine.run(requests)
    next(completions)
    completions.close()
    assert actors
    assert all(actor.is_dead for actor in actors)


def test_nobody_waits_for_a_worker_that_still_starts(start, requests, whole, monkeypatch):
    """A worker dies; the other one is done with its own part first and takes over, so that is the end."""
    engine, actors = start()
    monkeypatch.setattr(module, "cut_forest", lambda *_, **__: [shard(range(3)), shard(range(3, 6))])
    ray = sys.modules["ray"]
    slow = lambda refs: sorted(refs, key=lambda ref: engine._working[ref].name == "worker 2")  # noqa: E731
    ray.wait = lambda refs, num_returns: (slow(refs)[:1], slow(refs)[1:])
    found = []
    for completion in engine.run(requests):
        found.append(fields(completion))
        if len(found) == 1:
            actors[0].is_dead = True
    assert sorted(found) == whole
    assert actors[2].it is None


def shard(prompts):
    return types.SimpleNamespace(wanted={prompt: list(range(9)) for prompt in prompts})
