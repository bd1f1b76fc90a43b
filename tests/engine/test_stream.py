"""Completions as they finish, tokens as they are drawn, problems ended early, requests from coroutines."""

from __future__ import annotations

import asyncio

import pytest

from tests.engine.forests import FORESTS
from treeshare import LLM, AsyncLLM, SamplingParams
from treeshare.engine.streaming import FinishedOutput, TokenOutput
from treeshare.errors import ConfigError

PROMPTS = FORESTS["depth 2"]
PARAMS = SamplingParams(n=5, temperature=1.0, max_tokens=25)


@pytest.fixture(scope="module")
def llm(model_dir):
    return LLM(model_dir("llama"), dtype="float32")


@pytest.fixture(scope="module")
def expected(llm):
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return {(o.request_id, c.index): c for o in outputs for c in o.outputs}


def test_stream_gives_what_generate_gives(llm, expected):
    seen, order = {}, []
    for event in llm.stream(PROMPTS, PARAMS, tokens=True):
        if isinstance(event, TokenOutput):
            tokens = seen.setdefault((event.request_id, event.index), [])
            assert event.position == len(tokens)
            tokens.append(event.token_id)
        else:
            key = event.request_id, event.completion.index
            assert event.completion == expected[key]
            assert seen[key] == event.completion.token_ids
            order.append(len(event.completion.token_ids))
    assert len(order) == 20
    assert order == sorted(order)
    assert all(isinstance(event, FinishedOutput) for event in llm.stream(PROMPTS, PARAMS))


def test_leaving_a_stream_frees_everything(llm, expected):
    for event in llm.stream(PROMPTS, PARAMS, tokens=True):
        if isinstance(event, TokenOutput) and event.position == 3:
            break
    again = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    assert {(o.request_id, c.index): c for o in again for c in o.outputs} == expected


def test_a_callback_ends_a_problem(llm, expected):
    """The first completion of prompt 1 ends its others; every other completion is what it would have been."""
    calls = []

    def first_of_one(request_id, completion):
        calls.append(request_id)
        return "first success" if request_id == "1" else None

    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False, on_completion=first_of_one)
    assert [output.ended for output in outputs] == [None, "first success", None, None]
    assert len(outputs[1].outputs) < 5
    for output in outputs:
        for completion in output.outputs:
            assert completion == expected[output.request_id, completion.index]
    assert len(calls) == sum(len(output.outputs) for output in outputs)
    assert llm.stats.num_cancelled == 20 - len(calls)
    streamed = list(llm.stream(PROMPTS, PARAMS, on_completion=lambda *_: "enough"))
    assert {event.request_id for event in streamed} == {"0", "1", "2", "3"}
    assert len(streamed) < 20


@pytest.fixture(scope="module")
def served(model_dir):
    llm = AsyncLLM(model_dir("llama"), dtype="float32")
    yield llm
    llm.close()


async def gather(llm, prompt, delay=0.0, **options):
    await asyncio.sleep(delay)
    events = [event async for event in llm.generate(prompt, PARAMS, **options)]
    return {e.completion.index: e.completion for e in events if isinstance(e, FinishedOutput)}


def test_coroutines_get_what_generate_gives(served, expected):
    async def all_of_them():
        return await asyncio.gather(*(gather(served, p, 0.02 * i) for i, p in enumerate(PROMPTS * 2)))

    for i, found in enumerate(asyncio.run(all_of_them())):
        assert found == {index: expected[str(i % 4), index] for index in range(5)}
    assert served.stats.prefilled_tokens < 2 * sum(map(len, PROMPTS))


def test_leaving_a_generator_cancels(served, expected):
    async def leave():
        async for event in served.generate(PROMPTS[0], PARAMS, tokens=True):
            if isinstance(event, FinishedOutput) or event.position == 2:
                break
        return await gather(served, PROMPTS[1])

    assert asyncio.run(leave()) == {index: expected["1", index] for index in range(5)}


def test_a_mistake_reaches_the_one_who_made_it(served, expected):
    async def mixed():
        return await asyncio.gather(
            gather(served, [5, 10_000]), gather(served, PROMPTS[2]), return_exceptions=True
        )

    error, found = asyncio.run(mixed())
    assert isinstance(error, ConfigError)
    assert found == {index: expected["2", index] for index in range(5)}


def test_a_fault_reaches_everybody_and_the_engine_goes_on(served, expected, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("injected")

    async def both():
        return await asyncio.gather(*(gather(served, p) for p in PROMPTS[:2]), return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(served.llm.engine.runner, "forward", broken)
        assert [str(error) for error in asyncio.run(both())] == ["injected"] * 2
    assert asyncio.run(both())[0] == {index: expected["0", index] for index in range(5)}


def test_other_indices_are_other_completions(served, expected):
    found = asyncio.run(gather(served, PROMPTS[0], first_index=3))
    assert [found[index] for index in (3, 4)] == [expected["0", index] for index in (3, 4)]
    assert sorted(found) == [3, 4, 5, 6, 7]


def test_closing_ends_what_waits(model_dir):
    async def close_early():
        async with AsyncLLM(model_dir("llama"), dtype="float32") as llm:
            waiting = asyncio.create_task(gather(llm, PROMPTS[0]))
            await asyncio.sleep(0)
        with pytest.raises(ConfigError, match="closed"):
            await gather(llm, PROMPTS[0])
        return (await asyncio.gather(waiting, return_exceptions=True))[0]

    outcome = asyncio.run(close_early())
    assert isinstance(outcome, ConfigError) or len(outcome) == 5
