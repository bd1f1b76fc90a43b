"""Sends answers: with a bound on what is buffered for a client, and no work for clients that have gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine

    from treeshare.integrations.openai.connection import Connection

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

PART_BYTES = 64 << 10
"""Sent at a time: what a client has to take within its time."""

_EVENTS_AT_ONCE = 16
"""Made before others have their turn on the event loop."""

_LOG = logging.getLogger("treeshare.server")


SILENCE_S = 15.0
"""Seconds without an event after which a comment is sent: proxies hang up on silent connections."""

_COMMENT = b": treeshare is working\n\n"


class WholeAnswer:
    """An answer in JSON: an ASGI application.

    Args:
        content: The answer.
        held: Closed when it is sent.
    """

    status_code = 200

    def __init__(self, content: bytes, held: contextlib.ExitStack) -> None:
        self._content, self._held = content, held

    async def __call__(self, scope: object, receive: Receive, send: Send) -> None:
        """Send the answer."""
        size = len(self._content)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % size)]
        with self._held:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for start in range(0, size, PART_BYTES):
                part = self._content[start : start + PART_BYTES]
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


class _Outbox:
    """Events on their way to a client.

    Args:
        max_bytes: More may not lie here.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._events: deque[bytes] = deque()
        self._is_over = False
        self._is_taken = False
        self._has_news = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        """Whether nothing lies here, and what was taken last is sent."""
        return not self._events and not self._is_taken

    def put(self, event: bytes) -> None:
        """Add an event.

        Raises:
            BufferError: If too much lies here.
        """
        if self._num_bytes + len(event) > self._max_bytes:
            raise BufferError(f"more than {self._max_bytes} bytes are unread")
        self._events.append(event)
        self._num_bytes += len(event)
        self._has_news.set()

    def end(self) -> None:
        """No more will come."""
        self._is_over = True
        self._has_news.set()

    async def take(self) -> bytes:
        """About ``PART_BYTES`` of what lies here, once there is something; empty at the end."""
        self._is_taken = False
        if not self._events and not self._is_over:
            self._has_news.clear()
            await self._has_news.wait()
        taken: list[bytes] = []
        size = 0
        while self._events and (not taken or size + len(self._events[0]) <= PART_BYTES):
            taken.append(self._events.popleft())
            size += len(taken[-1])
        self._num_bytes -= size
        self._is_taken = True
        return b"".join(taken)


class EventStream:
    """A streamed answer: an ASGI application that ends when its client has gone.

    A client that reads slower than its answer is made is hung up on when too much lies unread.

    Args:
        events: What to send; closed at the end, so that rows are freed.
        held: Closed at the end.
        max_unread_bytes: Maximum of what is kept for the client.
    """

    status_code = 200

    def __init__(
        self, events: AsyncGenerator[bytes, None], held: contextlib.ExitStack, max_unread_bytes: int
    ) -> None:
        self._events, self._held = events, held
        self._outbox = _Outbox(max_unread_bytes)
        self._num_events = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:  # noqa: ANN401
        """Send the answer as it is made."""
        connection = connection_of(scope)
        with self._held:
            tasks = [
                asyncio.ensure_future(work)
                for work in (gone(receive), self._fill(send, connection), self._empty(send))
            ]
            try:
                await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
                if not tasks[0].done() and not tasks[1].exception():
                    await asyncio.wait([tasks[0], tasks[2]], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                _, *outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BufferError):
                    _LOG.warning("a stream's client was disconnected: %s", outcome)
                    await _hang_up(connection, receive)
                elif isinstance(outcome, Exception):
                    raise outcome

    async def _fill(self, send: Send, connection: Connection | None) -> None:
        """Make the events; what the client takes at once goes out at once, the rest by way of the outbox."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                if connection is not None and connection.is_writable and self._outbox.is_idle:
                    await send(_part(event))
                else:
                    self._outbox.put(event)
                self._num_events += 1
                if self._num_events % _EVENTS_AT_ONCE == 0:
                    await asyncio.sleep(0)
        self._outbox.end()

    async def _empty(self, send: Send) -> None:
        """Send what lies in the outbox, and the end; a comment where nothing came for a while."""
        while True:
            seen = self._num_events
            try:
                async with asyncio.timeout(SILENCE_S):
                    content = await self._outbox.take()
            except TimeoutError:
                if seen == self._num_events:
                    await send(_part(_COMMENT))
                continue
            if not content:
                break
            await send(_part(content))
        await send({"type": "http.response.body", "body": b""})


def _part(content: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": True}


async def _hang_up(connection: Connection | None, receive: Receive) -> None:
    """Drop the connection with what it has not taken; under another server, leave the answer unfinished."""
    if connection is not None:
        connection.abort()
        await gone(receive)


def connection_of(scope: Any) -> Connection | None:  # noqa: ANN401
    """The connection on which a request has come; None under another server."""
    found: Connection | None = scope.get("state", {}).get("connection")
    return found


async def gone(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do something as long as the client is there.

    Raises:
        ClientDisconnect: If it has gone.
    """
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone(receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        is_done = tasks[0].done()
    finally:
        for task in tasks:
            task.cancel()
        outcome, _ = await asyncio.gather(*tasks, return_exceptions=True)
    if not is_done:
        raise ClientDisconnect
    if isinstance(outcome, BaseException):
        raise outcome
