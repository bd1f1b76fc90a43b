"""What fails for one request ends that request; the others get what they get alone, and nothing is left."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.engine.forests import FORESTS, collect, requests_for, tokens_of
from treeshare import LLM, AsyncLLM, SamplingParams
from treeshare.config import EngineConfig
from treeshare.engine import token_step
from treeshare.engine.engine import Engine
from treeshare.engine.sequence import Request
from treeshare.errors import ConfigError, DataError
from treeshare.models import load_model
from treeshare.sampling import StopChecker, sampler

PARAMS = SamplingParams(n=4, temperature=1.0, max_tokens=12, ignore_eos=True)


class BrokenError(Exception):
    """Whatever a request's own code raises."""


@contextmanager
def replaced(patch, holder, name, instead):
    with patch.context() as inner:
        inner.setattr(holder, name, instead)
        yield


def broken_sampler(patch, is_broken):
    """Drawing raises for a batch that holds a row of a broken request."""
    draw = token_step.sample

    def fails(logits, specs, draw_rows, uniforms, hooks=None):
        if any(is_broken(spec) for spec in specs):
            raise BrokenError
        return draw(logits, specs, draw_rows, uniforms, hooks)

    return replaced(patch, token_step, "sample", fails)


def broken_logits(patch, is_broken):
    """A row of a broken request is NaN, as a model that overflows makes it."""
    draw = token_step.sample

    def spoilt(logits, specs, draw_rows, uniforms, hooks=None):
        rows = [row for row, spec in enumerate(specs) if is_broken(spec)]
        spoilt = logits.clone()
        spoilt[rows] = torch.nan
        return draw(spoilt, specs, draw_rows, uniforms, hooks)

    return replaced(patch, token_step, "sample", spoilt)


def broken_stop(patch, is_broken):
    """Looking for an end raises, as a tokenizer may that cannot decode."""
    check = StopChecker.check

    def fails(self, token_ids, **options):
        if self._params is BROKEN and len(token_ids) == BROKEN_AT:
            raise BrokenError
        return check(self, token_ids, **options)

    return replaced(patch, StopChecker, "check", fails)


BROKEN = SamplingParams(n=4, temperature=0.9, max_tokens=12, ignore_eos=True)
BROKEN_AT = 5

PLACES = {"sampler": broken_sampler, "logits": broken_logits, "stop": broken_stop}


def is_broken(spec):
    return spec.params is BROKEN and len(spec.generated) == BROKEN_AT - 1


def at_the_first_token(spec):
    return spec.params is BROKEN


@pytest.fixture(scope="module", params=[True, False], ids=["lazy", "eager"])
def engine(request, model_dir):
    config = EngineConfig(page_size=16, max_num_seqs=7, lazy_divergence=request.param)
    return Engine(load_model(model_dir("llama"), "float32"), config, check_invariants=True)


def requests_with_a_broken_one():
    requests = requests_for(FORESTS["depth 2"], PARAMS)
    return [replace(request, params=BROKEN) if i == 1 else request for i, request in enumerate(requests)]


@pytest.fixture(scope="module")
def expected(engine):
    """What comes of the requests where nothing is broken."""
    return tokens_of(collect(engine, requests_with_a_broken_one()))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("when", [is_broken, at_the_first_token])
def test_the_others_go_on_to_the_same_tokens(engine, expected, monkeypatch, place, when):
    requests = requests_with_a_broken_one()
    errors, found = {}, {}
    with PLACES[place](monkeypatch, when):
        for result in engine.run_steps(requests):
            errors |= result.failed
            found |= {(c.request_index, c.completion_index): c.token_ids for c in result.finished}
            assert not {s.request_index for s in result.drawn} & set(errors)
    assert list(errors) == [1]
    assert isinstance(errors[1], BrokenError | FloatingPointError)
    assert found == {key: tokens for key, tokens in expected.items() if key[0] != 1}
    assert engine.stats.num_finished + engine.stats.num_cancelled <= engine.stats.num_completions
    engine.store.check_empty()
    assert tokens_of(collect(engine, requests)) == expected


@pytest.mark.parametrize("place", PLACES)
def test_run_raises_and_leaves_a_usable_engine(engine, expected, monkeypatch, place):
    requests = requests_with_a_broken_one()
    with PLACES[place](monkeypatch, is_broken), pytest.raises((BrokenError, FloatingPointError)):
        collect(engine, requests)
    assert engine.is_idle
    assert tokens_of(collect(engine, requests)) == expected


@pytest.mark.parametrize("place", [*PLACES, "output"])
@pytest.mark.parametrize("tokens", [True, False])
def test_a_server_answers_the_others(model_dir, monkeypatch, place, tokens):
    """The one who asked gets the error; nobody's answer changes, and no text or listener is left."""
    llm = LLM(model_dir("llama"), dtype="float32", keep_nodes=True, max_num_seqs=9)
    prompts = FORESTS["depth 2"]

    async def ask(served, prompt, params):
        try:
            events = served.generate(list(prompt), params, tokens=tokens)
            return [e.completion.token_ids async for e in events if hasattr(e, "completion")]
        except (BrokenError, FloatingPointError) as error:
            return type(error).__name__

    async def everybody(served):
        params = [BROKEN if i == 1 else PARAMS for i in range(len(prompts))]
        return await asyncio.gather(*(ask(served, *pair) for pair in zip(prompts, params, strict=True)))

    async def run():
        async with AsyncLLM(llm) as served:
            expected = await everybody(served)
            if place == "output":
                output = served._events._output

                def fails(completion):
                    listener = served._listeners[completion.request_index]
                    number = listener.numbers[completion.request_index]
                    if listener.requests[number].params is BROKEN:
                        raise BrokenError
                    return output(completion)

                served._events._output = fails
                got = await everybody(served)
                served._events._output = output
            else:
                with PLACES[place](monkeypatch, is_broken):
                    got = await everybody(served)
            after = await everybody(served)
            async with asyncio.timeout(20):
                while served._listeners or served._events._sent:  # the last step is not over yet
                    await asyncio.sleep(0.01)
            assert (served.num_unfinished, served.num_running) == (0, 0)
            return expected, got, after

    expected, got, after = asyncio.run(run())
    assert isinstance(got.pop(1), str)
    assert after == expected
    expected.pop(1)
    assert got == expected


LATE = {
    "params": {"params": {"n": 2}},
    "a token that is no integer": {"prompt_token_ids": [5, 6.5]},
    "tokens in rows": {"prompt_token_ids": [[5, 6]]},
    "a seed": {"seed": 2**64},
    "a seed that is text": {"seed": "1"},
    "a key": {"problem_key": -1},
    "an index": {"completion_indices": [0, 2**32]},
    "an index that is no integer": {"completion_indices": [0.5]},
    "a repeated index": {"completion_indices": [1, 1]},
    "indices without an order": {"completion_indices": {0, 1}},
    "no indices": {"completion_indices": None},
    "a range": {"completion_indices": range(2**32, 2**32 + 2)},
}


@pytest.mark.parametrize("name", LATE)
def test_bad_requests_are_refused_before_they_are_in_a_step(engine, name):
    good = {
        "prompt_token_ids": [5, 6],
        "params": PARAMS,
        "problem_key": 1,
        "seed": 0,
        "completion_indices": [0],
    }
    with pytest.raises((ConfigError, DataError)):
        engine.add_request(Request(**good | LATE[name]))
    assert engine.is_idle
    assert len(collect(engine, [Request(**good)])) == 1


def test_without_isolation_everybody_fails(engine, monkeypatch):
    """The positive control: an error that is no request's ends the step for all."""

    def fails(*_):
        raise BrokenError

    for request in requests_with_a_broken_one():
        engine.add_request(request)
    monkeypatch.setattr(engine.runner, "forward", fails)
    with pytest.raises(BrokenError):
        engine.step()
    assert engine.is_idle


def test_rows_drawn_alone_are_the_batch(engine, monkeypatch):
    """What is drawn again row by row, after a failure beside it, has the bits of the batch."""
    seen = []
    draw = sampler.sample

    def noted(logits, specs, draw_rows, uniforms, hooks=None):
        drawn = draw(logits, specs, draw_rows, uniforms)
        parts = []
        for row, spec in enumerate(specs):
            own = uniforms[draw_rows == row]
            parts.append(draw(logits[row : row + 1], [spec], np.zeros(len(own), int), own))
        assert np.concatenate([part.token_ids for part in parts]).tolist() == drawn.token_ids.tolist()
        assert np.concatenate([part.logprobs for part in parts]).tolist() == drawn.logprobs.tolist()
        seen.append(len(specs))
        return drawn

    monkeypatch.setattr(token_step, "sample", noted)
    collect(engine, requests_for(FORESTS["depth 2"], PARAMS))
    assert max(seen) > 3
