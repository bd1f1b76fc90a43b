"""Runs the server until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from typing import TYPE_CHECKING, Any

import uvicorn

from treeshare.errors import ConfigError
from treeshare.integrations.openai.connection import ConnectionLimits, Waiting
from treeshare.integrations.openai.log_limit import LogLimit
from treeshare.integrations.openai.server import create_app

_BACKLOG = 2048
"""Connections that may wait to be accepted."""

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from treeshare.engine.async_llm import AsyncLLM
    from treeshare.integrations.openai.server_options import ServerOptions


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, on which nothing listens yet; clients are refused until the model is loaded.

    Raises:
        ConfigError: If the address is not available.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host} --port {port}: cannot listen there: {reason}") from error
    return bound


def server_config(app: Any, waiting: Waiting, **options: Any) -> uvicorn.Config:  # noqa: ANN401
    """Settings of uvicorn for an application of ``create_app``."""
    return uvicorn.Config(
        app,
        http=waiting.connect,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=waiting.limits.accepted_at_once,
        **options,
    )


class Server(uvicorn.Server):  # type: ignore[misc]  # uvicorn is not followed
    """A server of uvicorn whose backlog is that of the loop only, and not also the system's."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        for bound in sockets or ():
            bound.listen(_BACKLOG)


def _write_access_lines() -> None:
    """Write a line for each request on stderr."""
    log = logging.getLogger("treeshare.access")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def serve(
    llm: AsyncLLM,
    bound: socket.socket,
    options: ServerOptions,
    *,
    grace_s: int,
    connection_limits: ConnectionLimits | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Answer requests until SIGINT or SIGTERM comes; then no new ones, and the running ones may finish.

    Args:
        llm: Runs the requests; closed at the end.
        bound: Where to listen.
        options: How to answer.
        grace_s: Longest time for running requests to finish; a second signal ends it.
        connection_limits: How long clients may keep the server waiting.
        on_start: Called when requests can come.

    Raises:
        ConfigError: If another server has begun to listen there since ``bind``, or the process may not open
            enough files.
    """
    try:
        waiting = Waiting(connection_limits or ConnectionLimits())
        bound.listen(_BACKLOG)
    except ConfigError:
        llm.close()
        raise
    except OSError as error:
        llm.close()
        raise ConfigError(
            f"--port {bound.getsockname()[1]}: cannot listen there: {error.strerror}"
        ) from error
    app = create_app(llm, options)
    _write_access_lines()

    async def until_cancelled(scope: object, receive: object, send: object) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # the grace is over: no fault of the application
            await app(scope, receive, send)

    server = Server(server_config(until_cancelled, waiting, timeout_graceful_shutdown=grace_s))

    def stop(number: int, frame: FrameType | None) -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    async def run() -> None:
        # Not uvicorn's own handlers: they raise the signal again at the end, for another exit status than 0.
        held = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        server.capture_signals = contextlib.nullcontext
        on_start()
        try:
            with LogLimit():
                await server.serve([bound])
        finally:
            await asyncio.to_thread(llm.close)
            for number, handler in held.items():
                signal.signal(number, handler)

    asyncio.run(run())
