"""A client's connection: closed if its client keeps the server waiting, or if there are too many."""

from __future__ import annotations

import contextlib
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from treeshare.errors import ConfigError

if TYPE_CHECKING:
    import asyncio

_READ_BYTES = 16 << 10
"""Taken from a connection at a time: what a client sends is parsed in turn with the others' requests."""

_PATIENCE_S = 1.0
"""A connection that has waited no longer for a request gives way to no other: its head may be on its way."""

_RESERVED_FILES = 24
"""Descriptors that are no client's, apart from those of connections just being accepted or closed."""

_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
)


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """How long a client may keep the server waiting.

    Attributes:
        max_connections: Connections open at once; beyond, the one that has waited longest for a request is
            closed, or the new one, with 503, where all are being answered or are as new.
        idle_timeout_s: Longest time until the head of a request is whole, from when the connection was made
            or the last answer ended.
        transfer_timeout_s: Longest time in which a part of an answer (64 KiB) is taken.
    """

    max_connections: int = 1000
    idle_timeout_s: float = 30.0
    transfer_timeout_s: float = 60.0

    @property
    def accepted_at_once(self) -> int:
        """Connections that are accepted before those that are open are looked at again."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return max(1, min(128, limit // 24))

    @property
    def max_clients(self) -> int:
        """``max_connections``, or what the process's limit of open files leaves for them.

        Raises:
            ConfigError: If it leaves none.
        """
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # A connection is known, and one that gives way is closed, some turns of the event loop later.
        reserved = _RESERVED_FILES + 3 * self.accepted_at_once
        with contextlib.suppress(OSError):
            reserved += len(os.listdir("/proc/self/fd" if Path("/proc/self/fd").exists() else "/dev/fd"))
        if limit <= reserved:
            raise ConfigError(
                f"open files: the limit is {limit}, which leaves none for clients; expected more than "
                f"{reserved}; raise it (ulimit -n)"
            )
        return min(self.max_connections, limit - reserved)


class Waiting:
    """The connections on which no request is being answered, the one that waits longest first.

    Args:
        limits: Of each, and of all together.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits, self.max_clients = limits, limits.max_clients
        self._connections: dict[Connection, float] = {}  # with the time at which each began to wait

    def add(self, connection: Connection) -> None:
        """A connection begins to wait."""
        self._connections.pop(connection, None)
        self._connections[connection] = connection.loop.time()

    def discard(self, connection: Connection) -> None:
        """A connection waits no more."""
        self._connections.pop(connection, None)

    def close_longest(self) -> bool:
        """Close the one that has waited longest; whether there is one that has waited at all."""
        for connection, began in self._connections.items():
            if connection.loop.time() - began < _PATIENCE_S:
                break
            self.discard(connection)
            connection.abort()
            return True
        return False

    def connect(self, **options: Any) -> Connection:  # noqa: ANN401
        """A new connection, as uvicorn asks for it: its ``http_protocol_class``."""
        return Connection(self, **options)


class Connection(H11Protocol):  # type: ignore[misc]  # uvicorn is not followed
    """HTTP as uvicorn speaks it with the ``h11`` library, and the clocks that it lacks.

    The application finds it as ``scope["state"]["connection"]``.

    Args:
        waiting: The connections without a request.
        **options: uvicorn's.
    """

    def __init__(self, waiting: Waiting, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self.app_state: dict[str, Any] = {**options["app_state"], "connection": self}
        self._waiting = waiting
        self._request_clock: asyncio.TimerHandle | None = None
        self._write_clock: asyncio.TimerHandle | None = None

    @property
    def is_writable(self) -> bool:
        """Whether the client has taken all that it was sent."""
        return not self.flow.write_paused

    @property
    def is_lost(self) -> bool:
        """Whether the client has gone, or was hung up on."""
        return bool(self.transport.is_closing())

    def abort(self) -> None:
        """Hang up; what has not been sent is dropped."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        # ``pause_writing`` whenever something is left to send, not only beyond some amount of it.
        transport.set_write_buffer_limits(high=0)
        with contextlib.suppress(AttributeError):  # only asyncio's own transports have it
            transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        self._wait_for_request()
        is_full = len(self.connections) > self._waiting.max_clients
        if is_full and not self._waiting.close_longest():
            transport.write(_REFUSAL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_waiting()
        self._stop_write_clock()
        super().connection_lost(exc)

    # -- waiting for a request --

    def handle_events(self) -> None:
        """Take what has come; a request whose head is whole ends the waiting."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Wait for the next request; it may have come already."""
        self._wait_for_request()
        super().on_response_complete()

    def _wait_for_request(self) -> None:
        self._stop_waiting()
        self._waiting.add(self)
        self._request_clock = self.loop.call_later(self._waiting.limits.idle_timeout_s, self.transport.close)

    def _stop_waiting(self) -> None:
        self._waiting.discard(self)
        if self._request_clock is not None:
            self._request_clock.cancel()
            self._request_clock = None

    # -- waiting until an answer is taken --

    def pause_writing(self) -> None:
        """The client does not take what it is sent."""
        super().pause_writing()
        self._stop_write_clock()
        self._write_clock = self.loop.call_later(self._waiting.limits.transfer_timeout_s, self.abort)

    def resume_writing(self) -> None:
        """It has taken everything."""
        self._stop_write_clock()
        super().resume_writing()

    def _stop_write_clock(self) -> None:
        if self._write_clock is not None:
            self._write_clock.cancel()
            self._write_clock = None
