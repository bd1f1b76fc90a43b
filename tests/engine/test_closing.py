"""Requests around the end of ``AsyncLLM``, its thread's or a loop's: each gets its answer or an error."""

from __future__ import annotations

import asyncio
import threading

import pytest

from treeshare import LLM, AsyncLLM, SamplingParams
from treeshare.engine import async_llm
from treeshare.errors import ConfigError

PARAMS = SamplingParams(n=2, max_tokens=20, ignore_eos=True)

WAIT_S = 30
"""Seconds until a request counts as one that waits for ever."""


@pytest.fixture(scope="module")
def llm(model_dir):
    return LLM(model_dir("llama"), dtype="float32", keep_nodes=True)


def ask(served, params=PARAMS):
    """The lengths of the answers, or the name of the error."""

    async def answers():
        return [len(event.completion.token_ids) async for event in served.generate([5, 6, 7], params)]

    async def bounded():
        async with asyncio.timeout(WAIT_S):
            return await answers()

    try:
        return asyncio.run(bounded())
    except TimeoutError:
        return "no answer"
    except Exception as error:
        return type(error).__name__


def die():
    raise SystemExit


def fail():
    raise KeyError("a command of nobody's")


@pytest.mark.parametrize("at", ["listener", "put", "added"])
def test_closed_while_a_request_comes(llm, monkeypatch, at):
    """Between any two of its first steps."""
    served = AsyncLLM(llm)
    if at == "listener":
        made = async_llm._Listener
        monkeypatch.setattr(async_llm, "_Listener", lambda *args: served.close() or made(*args))
    else:
        put = served._commands.put

        def put_and_close(command):
            if at == "put":
                served.close()
            put(command)
            if at == "added":
                served.close()

        monkeypatch.setattr(served._commands, "put", put_and_close)
    assert ask(served) == "ConfigError"
    assert not served.is_running


def test_many_that_come_while_it_is_closed(llm):
    """Whatever the order of threads: each is answered or refused."""
    for _ in range(5):
        served, found = AsyncLLM(llm), []
        threads = [
            threading.Thread(target=lambda served=served, found=found: found.append(ask(served)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        served.close()
        for thread in threads:
            thread.join(WAIT_S)
        assert len(found) == 6
        assert set(map(str, found)) <= {"[20, 20]", "ConfigError"}


@pytest.mark.parametrize("others", [0, 2])
def test_a_thread_that_dies(llm, others):
    """Those that wait, those whose commands lie behind, and those that come later."""
    served = AsyncLLM(llm)
    ready, go_on, found = threading.Event(), threading.Event(), []

    def hold():
        ready.set()
        go_on.wait(WAIT_S)
        raise SystemExit

    served._commands.put(hold)
    ready.wait(WAIT_S)
    threads = [threading.Thread(target=lambda: found.append(ask(served))) for _ in range(others)]
    for thread in threads:
        thread.start()
    while served._commands._queue.qsize() < others:
        threading.Event().wait(0.01)
    if others:
        served._commands.put(die)  # another one, which must not stop the telling
    go_on.set()
    for thread in threads:
        thread.join(WAIT_S)
    served._thread.join(WAIT_S)
    assert found == ["RuntimeError"] * others
    assert ask(served) == "ConfigError"
    served.close()
    served.close()


def test_a_command_that_fails_ends_nothing_else(llm):
    served = AsyncLLM(llm)
    served._commands.put(fail)
    assert ask(served) == [20, 20]
    served.close()


def test_a_loop_that_is_closed_is_not_computed_for(llm):
    """Its generator is still held, so nobody cancels."""
    served = AsyncLLM(llm)

    async def first():
        events = served.generate([5, 6, 7], SamplingParams(max_tokens=400, ignore_eos=True), tokens=True)
        await anext(events)
        return events

    loop = asyncio.new_event_loop()
    held = loop.run_until_complete(first())
    loop.close()
    for _ in range(WAIT_S * 100):
        if not served._listeners:
            break
        threading.Event().wait(0.01)
    assert not served._listeners
    assert served.num_unfinished == 0
    assert served.num_tokens < 400
    assert ask(served) == [20, 20]
    del held
    served.close()


def test_closing_from_its_own_thread(llm):
    served = AsyncLLM(llm)
    served._commands.put(served.close)
    served._thread.join(WAIT_S)
    assert not served.is_running
    assert ask(served) == "ConfigError"


def test_memory_goes_back_in_silence(llm, monkeypatch):
    monkeypatch.setattr(async_llm, "SILENCE_S", 0.05)
    served = AsyncLLM(llm)
    assert ask(served) == [20, 20]
    for _ in range(WAIT_S * 100):
        if not served.llm.engine.store.loose_bytes:
            break
        threading.Event().wait(0.01)
    assert served.llm.engine.store.loose_bytes == 0
    assert ask(served) == [20, 20]
    served.close()


def test_the_message_after_the_end(llm):
    served = AsyncLLM(llm)
    served.close()
    with pytest.raises(ConfigError, match=r"^AsyncLLM: it was closed; make another$"):
        asyncio.run(anext(served.generate([5, 6], PARAMS)))
