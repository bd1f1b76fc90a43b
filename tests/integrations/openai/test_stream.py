"""What a stream sends while there is nothing to send."""

from __future__ import annotations

import asyncio
import contextlib

from treeshare.integrations.openai import stream as module
from treeshare.integrations.openai.stream import EventStream


def sent_by(make_events, *, leaves_after=None):
    """The parts that reach a client, which goes away after so many of them, or stays."""
    parts = []

    async def answer():
        has_left = asyncio.Event()

        async def receive():
            await has_left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            parts.append(message.get("body", b""))
            if len(parts) == leaves_after:
                has_left.set()

        events = EventStream(make_events(), contextlib.ExitStack(), 1 << 20)
        await asyncio.wait_for(events({"type": "http"}, receive, send), 20)

    asyncio.run(answer())
    return [part for part in parts if part]


async def slow_events():
    yield b"data: 1\n\n"
    await asyncio.sleep(0.5)
    yield b"data: 2\n\n"


def test_a_silent_stream_says_that_it_lives(monkeypatch):
    monkeypatch.setattr(module, "SILENCE_S", 0.1)
    parts = sent_by(slow_events)
    assert parts[0] == b"data: 1\n\n"
    assert parts[-1] == b"data: 2\n\n"
    assert len(parts) > 3
    assert set(parts[1:-1]) == {b": treeshare is working\n\n"}


def test_a_stream_that_is_not_silent_has_no_comments():
    assert sent_by(slow_events) == [b"data: 1\n\n", b"data: 2\n\n"]


def test_a_silent_stream_ends_with_its_client(monkeypatch):
    monkeypatch.setattr(module, "SILENCE_S", 0.01)

    async def endless():
        yield b"data: 1\n\n"
        await asyncio.sleep(3600)

    assert len(sent_by(endless, leaves_after=10)) < 60
