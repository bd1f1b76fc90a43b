"""A request's body while it arrives, within limits for each and for all of them together."""

from __future__ import annotations

import asyncio
import contextlib
from email.message import Message
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from treeshare.integrations.openai.schema import ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from starlette.datastructures import Headers

    Receive = Callable[[], Awaitable[dict[str, Any]]]

_DRAINED_BYTES, _DRAIN_S = 256 << 20, 10.0
"""Maximum of a refused body that is read: bytes, and seconds."""


class Queue:
    """The requests that are held, from their head on to the end of their answer.

    Args:
        max_requests: Beyond, 429.
        max_bytes: Of their bodies together; beyond, 429 for the one whose body is coming.

    Attributes:
        num_requests, num_bytes: Held now.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self.num_requests = self.num_bytes = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[Place]:
        """A request's place while it is held.

        Raises:
            ApiError: Status 429, if there is none.
        """
        if self.num_requests >= self._max_requests:
            raise _full(f"{self._max_requests} requests are in progress")
        self.num_requests += 1
        place = Place(self)
        try:
            yield place
        finally:
            self.num_requests -= 1
            self.num_bytes -= place.num_bytes

    def take(self, num_bytes: int) -> None:
        """Some more of a body has come.

        Raises:
            ApiError: Status 429, if there is no room for it.
        """
        if self.num_bytes + num_bytes > self._max_bytes:
            raise _full(f"the requests in progress have {self.num_bytes} bytes")
        self.num_bytes += num_bytes


class Place:
    """A held request.

    Args:
        queue: Where it is held.

    Attributes:
        num_bytes: Of its body, as far as it has come.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """See ``Queue.take``."""
        self._queue.take(num_bytes)
        self.num_bytes += num_bytes


def _full(reason: str) -> ApiError:
    return ApiError(429, f"{reason}; try again", code="queue_full")


class Upload:
    """A request's body as it comes.

    Args:
        receive: Of the ASGI application.
        headers: Of the request.
        max_bytes: A longer body is refused.
        timeout_s: Longest time in which it comes.
    """

    def __init__(self, receive: Receive, headers: Headers, *, max_bytes: int, timeout_s: float) -> None:
        self._receive, self._headers = receive, headers
        self._max_bytes, self._timeout_s = max_bytes, timeout_s
        self._is_expected = "expect" not in headers  # else the client waits until it is told to send
        self.is_whole = False

    async def read(self, place: Place) -> bytes:
        """The body; no more is taken in than the limits allow.

        Args:
            place: Where it is counted.

        Raises:
            ApiError: Status 408, 413, 415 or 429.
            ClientDisconnect: If the client has gone.
        """
        self._check_form()
        too_long = ApiError(413, f"the body is longer than {self._max_bytes} bytes", code="body_too_large")
        length = self._headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > self._max_bytes:
            raise too_long
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                while not self.is_whole:
                    part = await self._next_part()
                    if len(body) + len(part) > self._max_bytes:
                        raise too_long
                    place.take(len(part))
                    body += part
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time") from None
        return bytes(body)

    async def drain(self) -> None:
        """Throw the rest away, within limits: a client that still sends would not see its refusal."""
        left = _DRAINED_BYTES
        with contextlib.suppress(ClientDisconnect, TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                while self._is_expected and left > 0 and not self.is_whole:
                    left -= len(await self._next_part())

    async def _next_part(self) -> bytes:
        self._is_expected = True
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self.is_whole = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part

    def _check_form(self) -> None:
        """Refuse what is not JSON in UTF-8 as it is (RFC 9110, 8.3 and 8.4)."""
        given = Message()
        given["content-type"] = ", ".join(self._headers.getlist("content-type"))
        if given.get_content_type() != "application/json" or given.get_content_charset("utf-8") not in (
            "utf-8",
            "utf8",
            "us-ascii",
        ):
            raise ApiError(415, "content-type: expected application/json in UTF-8")
        if self._headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise ApiError(415, "content-encoding: expected none")
