"""200 clients at once with a common system prompt: nothing lost, nobody disturbed, memory in its budget."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

from tests.integrations.openai.serving import NAME, serving, wait_until
from treeshare import AsyncLLM, SamplingParams

NUM_CLIENTS = 200
SYSTEM = {"role": "system", "content": "You are a poet of few words. " * 8}
KV_TOKENS = 12_000
"""Of the budget; all clients together would need three times as many without sharing."""


def request(i):
    body = {"messages": [SYSTEM, {"role": "user", "content": f"Number {i}"}]}
    return body | {"max_tokens": 20 + i % 30, "seed": i, "n": 1 + i % 3, "temperature": 0.9}


def rss_bytes():
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


async def ask(client, i):
    """An answer's texts, by a stream or whole."""
    body = {"model": NAME, **request(i)}
    if i % 2:
        answer = await client.chat.completions.create(**body)
        return [choice.message.content for choice in answer.choices]
    found = [""] * body["n"]
    async for piece in await client.chat.completions.create(**body, stream=True):
        for choice in piece.choices:
            found[choice.index] += choice.delta.content or ""
    return found


async def ask_all(url):
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(limits=limits, timeout=600) as http,
        openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=600, http_client=http
        ) as client,
    ):
        return await asyncio.gather(*(ask(client, i) for i in range(NUM_CLIENTS)))


def expected_answers(llm):
    """What each would get alone."""
    found = []
    for i in range(NUM_CLIENTS):
        body = request(i)
        messages = body.pop("messages")
        (output,) = llm.chat(messages, SamplingParams(**body), use_tqdm=False)
        found.append([completion.text for completion in output.outputs])
    return found


@pytest.mark.slow
def test_many_clients(chat_model, llm):
    expected = expected_answers(llm)
    budget = KV_TOKENS * llm.loaded.geometry.bytes_per_token
    served_llm = AsyncLLM(chat_model, dtype="float32", kv_budget_bytes=budget, max_num_seqs=64)
    highest, is_over = [], threading.Event()

    def watch():
        while not is_over.wait(0.05):
            highest.append((served_llm.kv_bytes_in_use, rss_bytes(), served_llm.num_running))

    try:
        with serving(served_llm) as served:
            first = asyncio.run(ask_all(served.url))
            after_first = rss_bytes()
            thread = threading.Thread(target=watch)
            thread.start()
            started = time.monotonic()
            again = [asyncio.run(ask_all(served.url)) for _ in range(2)]
            seconds = time.monotonic() - started
            is_over.set()
            thread.join()
            wait_until(lambda: served_llm.num_unfinished == 0)
            metrics = served.http.get("/metrics").text
    finally:
        served_llm.close()
    assert first == expected
    assert again == [expected] * 2
    kv, rss, running = (max(column) for column in zip(*highest, strict=True))
    print(
        f"{2 * NUM_CLIENTS / seconds:.0f} requests/s, {running} rows, KV {kv}, RSS grew {rss - after_first}"
    )
    assert kv <= budget
    assert served_llm.stats.peak_kv_bytes <= budget
    assert rss - after_first < 64 << 20
    assert f'status="200"}} {3 * NUM_CLIENTS}.0' in metrics
    assert "treeshare_requests_in_flight 0.0" in metrics
