"""Sending answers: no more is kept for a client than a limit, and nothing is done for one that has gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

PART_BYTES = 64 << 10
"""Sent at a time: what a client has to take within its time."""

_EVENTS_AT_ONCE = 16
"""Made before others have their turn on the event loop."""

_LOG = logging.getLogger("treeshare.server")


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
        self._has_news = asyncio.Event()

    def put(self, event: bytes) -> None:
        """Add an event.

        Raises:
            BufferError: If too much lies here.
        """
        if self._num_bytes + len(event) > self._max_bytes:
            raise BufferError(f"more than {self._max_bytes} bytes are not read")
        self._events.append(event)
        self._num_bytes += len(event)
        self._has_news.set()

    def end(self) -> None:
        """No more will come."""
        self._is_over = True
        self._has_news.set()

    async def take(self) -> bytes:
        """About ``PART_BYTES`` of what lies here, once there is something; empty at the end."""
        if not self._events and not self._is_over:
            self._has_news.clear()
            await self._has_news.wait()
        taken: list[bytes] = []
        size = 0
        while self._events and (not taken or size + len(self._events[0]) <= PART_BYTES):
            taken.append(self._events.popleft())
            size += len(taken[-1])
        self._num_bytes -= size
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

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:  # noqa: ANN401
        """Send the answer as it is made."""
        with self._held, contextlib.suppress(ClientDisconnect):
            try:
                await unless_gone(self._pump(send), receive)
            except BufferError as error:
                _LOG.warning("a stream's client was hung up on: %s", error)
                await _hang_up(scope, receive)

    async def _pump(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        filling = asyncio.ensure_future(self._fill())
        sending = asyncio.ensure_future(self._send(send, headers))
        try:
            await asyncio.wait([filling, sending], return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in (filling, sending):
                task.cancel()
            outcomes = await asyncio.gather(filling, sending, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def _fill(self) -> None:
        count = 0
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                self._outbox.put(event)
                count += 1
                if count % _EVENTS_AT_ONCE == 0:
                    await asyncio.sleep(0)
        self._outbox.end()

    async def _send(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while part := await self._outbox.take():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _hang_up(scope: Any, receive: Receive) -> None:  # noqa: ANN401
    """Drop the connection with what it has not taken; under another server, leave the answer unfinished."""
    connection = scope.get("state", {}).get("connection")
    if connection is not None:
        connection.abort()
        while (await receive())["type"] != "http.disconnect":
            pass


async def unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do something as long as the client is there.

    Raises:
        ClientDisconnect: If it has gone.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
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
