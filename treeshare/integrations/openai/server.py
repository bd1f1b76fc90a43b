"""OpenAI's endpoints over ``AsyncLLM``: a FastAPI application."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from treeshare.engine.chat import ChatOptions
from treeshare.engine.streaming import FinishedOutput
from treeshare.files import dump_json
from treeshare.integrations.openai.job import make_job
from treeshare.integrations.openai.metrics import Metrics
from treeshare.integrations.openai.reply import Reply, TokenSpeller
from treeshare.integrations.openai.schema import (
    CHAT,
    COMPLETIONS,
    ApiError,
    model_name,
    parse_body,
    read_json,
    unknown_model,
)

_DRAINED_BYTES, _DRAIN_S = 256 << 20, 10.0
"""Maximum of a refused body that is read: bytes, and seconds."""

_LOG = logging.getLogger("treeshare.server")

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping

    from treeshare.engine.async_llm import AsyncLLM
    from treeshare.engine.outputs import CompletionOutput
    from treeshare.integrations.openai.job import Job

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server answers.

    Attributes:
        names: Names of the model; the first stands in answers to requests that give none.
        api_key: What ``/v1`` asks of its clients; None for nothing.
        max_body_bytes: A longer body is refused with 413.
        max_queue: Requests held at once; beyond, 429.
        body_timeout_s: Longest time in which a body comes; beyond, 408.
        chat_template: Instead of the model's own.
        chat_template_kwargs: What its chat template is given, where a request does not say otherwise.
    """

    names: tuple[str, ...]
    api_key: str | None = None
    max_body_bytes: int = 4 << 20
    max_queue: int = 1024
    body_timeout_s: float = 60.0
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None


def create_app(llm: AsyncLLM, options: ServerOptions) -> Any:  # noqa: ANN401
    """The application; the caller closes ``llm``."""
    return _Server(llm, options).app


class _Server:
    """The endpoints.

    Args:
        llm: Runs the requests.
        options: How to answer.
    """

    def __init__(self, llm: AsyncLLM, options: ServerOptions) -> None:
        self._llm, self._options = llm, options
        self._chat = ChatOptions(
            chat_template=options.chat_template, chat_template_kwargs=options.chat_template_kwargs
        )
        self._metrics = Metrics(llm)
        self._speller = TokenSpeller(llm.llm)
        self._started = int(time.time())
        # One thread: long texts are turned to tokens and back beside the loop, and not on all of the model's
        # cores.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self.app = FastAPI(
            routes=[
                Route(COMPLETIONS, self._endpoint(COMPLETIONS), methods=["POST"]),
                Route(CHAT, self._endpoint(CHAT), methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{name:path}", self._model, methods=["GET"]),
                Route("/health", self._health, methods=["GET"]),
                Route("/metrics", self._show_metrics, methods=["GET"]),
            ],
            exception_handlers={
                ApiError: _answer_error,
                HTTPException: _answer_http_error,
            },
            openapi_url=None,
        )

    # -- what is cheap --

    async def _health(self, _: Any) -> Response:  # noqa: ANN401
        return _json(200, {"status": "ok"}) if self._llm.is_running else _json(503, {"status": "ended"})

    async def _show_metrics(self, _: Any) -> Response:  # noqa: ANN401
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _models(self, request: Any) -> Response:  # noqa: ANN401
        self._authorise(request)
        return _json(200, {"object": "list", "data": [self._card(name) for name in self._options.names]})

    async def _model(self, request: Any) -> Response:  # noqa: ANN401
        self._authorise(request)
        name = request.path_params["name"]
        if name not in self._options.names:
            raise unknown_model(name, self._options.names)
        return _json(200, self._card(name))

    def _card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "treeshare",
            "max_model_len": self._llm.max_model_len,
        }

    def _authorise(self, request: Any) -> None:  # noqa: ANN401
        """Refuse a client without the key; the time that takes does not depend on what it guessed."""
        if self._options.api_key is None:
            return
        given = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, b"Bearer " + self._options.api_key.encode()):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    # -- what runs the model --

    def _endpoint(self, url: str) -> Callable[[Any], Coroutine[Any, Any, Any]]:
        async def answer(request: Any) -> Any:  # noqa: ANN401
            upload = _Upload(request.receive)
            try:
                response = await self._answer(url, request, upload)
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody reads it
            except ApiError as error:
                if error.status != 408:
                    await upload.drain()
                response = await _answer_error(request, error)
                if not upload.is_whole:
                    response.headers["connection"] = "close"
            except Exception:
                _LOG.exception("a request to %s failed", url)
                response = _json(500, _FAULT.body)
            self._metrics.requests.labels(url, response.status_code).inc()
            return response

        return answer

    async def _answer(self, url: str, request: Any, upload: _Upload) -> Any:  # noqa: ANN401
        self._authorise(request)
        self._check_queue()
        values = await self._read(request, upload)
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            self._check_queue()
            stack.enter_context(self._held(url, started))
            job = await loop.run_in_executor(self._worker, self._job, url, values)
            self._metrics.prompt_tokens.inc(sum(len(request.prompt_token_ids) for request in job.requests))
            reply = Reply(self._llm.llm, job, self._speller)
            if job.body.stream:
                return _EventStream(self._events(job, reply, started), stack.pop_all())
            outputs: list[tuple[int, CompletionOutput]] = []

            async def collect() -> None:
                async with contextlib.aclosing(self._llm.run(job.requests)) as events:
                    async for number, output in events:
                        if not outputs:
                            self._metrics.first_token_s.observe(time.perf_counter() - started)
                        assert isinstance(output, FinishedOutput)
                        outputs.append((number, output.completion))

            await _unless_gone(collect(), request.receive)
            content = await loop.run_in_executor(self._worker, lambda: dump_json(reply.whole(outputs)))
            return Response(content, media_type="application/json")

    def _check_queue(self) -> None:
        if self._metrics.num_held >= self._options.max_queue:
            raise ApiError(
                429, f"{self._options.max_queue} requests are being answered; try again", code="queue_full"
            )

    @contextlib.contextmanager
    def _held(self, url: str, started: float) -> Iterator[None]:
        """Count a request while it is being answered."""
        self._metrics.num_held += 1
        try:
            yield
        finally:
            self._metrics.num_held -= 1
            self._metrics.request_s.labels(url).observe(time.perf_counter() - started)

    async def _read(self, request: Any, upload: _Upload) -> object:  # noqa: ANN401
        """The body's JSON; no more is taken in than the limit allows."""
        limit = self._options.max_body_bytes
        too_long = ApiError(413, f"the body is longer than {limit} bytes", code="body_too_large")
        if not request.headers.get("content-type", "").lower().startswith("application/json"):
            raise ApiError(415, "content-type: expected application/json")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > limit:
            raise too_long
        body = bytearray()
        try:
            async with asyncio.timeout(self._options.body_timeout_s):
                while not upload.is_whole:
                    body += await upload.next_part()
                    if len(body) > limit:
                        raise too_long
        except TimeoutError:
            raise ApiError(408, "the body took too long to come") from None
        return read_json(bytes(body))

    def _job(self, url: str, values: object) -> Job:
        body = parse_body(url, values)
        return make_job(
            self._llm.llm,
            body,
            model=model_name(body, self._options.names),
            seed=secrets.randbits(64),
            chat=self._chat,
        )

    async def _events(self, job: Job, reply: Reply, started: float) -> AsyncGenerator[bytes, None]:
        """The lines of a streamed answer; a fault on the way is the last."""
        options = job.body.stream_options
        with_usage = options is not None and options.include_usage
        is_first = True
        try:
            async with contextlib.aclosing(self._llm.run(job.requests, tokens=True)) as events:
                async for number, output in events:
                    if is_first:
                        self._metrics.first_token_s.observe(time.perf_counter() - started)
                        is_first = False
                    for piece in reply.pieces(number, output):
                        yield _event(piece | {"usage": None} if with_usage else piece)
        except Exception:
            _LOG.exception("a streamed answer failed")
            yield _event(_FAULT.body)
            return
        if with_usage:
            yield _event(reply.last_piece())
        yield b"data: [DONE]\n\n"


class _Upload:
    """A request's body as it comes.

    Args:
        receive: Of the ASGI application.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.is_whole = False

    async def next_part(self) -> bytes:
        """Some more of it.

        Raises:
            ClientDisconnect: If the client has gone.
        """
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self.is_whole = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part

    async def drain(self) -> None:
        """Throw the rest away, within limits: a client that still sends would not see its refusal."""
        left = _DRAINED_BYTES
        with contextlib.suppress(ClientDisconnect, TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                while left > 0 and not self.is_whole:
                    left -= len(await self.next_part())


class _EventStream:
    """A streamed answer: an ASGI application that ends when its client has gone.

    Args:
        events: What to send; closed at the end, so that rows are freed.
        held: Closed at the end.
    """

    status_code = 200

    def __init__(self, events: AsyncGenerator[bytes, None], held: contextlib.ExitStack) -> None:
        self._events, self._held = events, held

    async def __call__(self, scope: object, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]

        async def pump() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async with contextlib.aclosing(self._events) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        with self._held, contextlib.suppress(ClientDisconnect):
            await _unless_gone(pump(), receive)


async def _unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
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


_FAULT = ApiError(500, "the server could not answer; its log says why", code="internal_error")


def _event(value: object) -> bytes:
    return b"data: " + dump_json(value) + b"\n\n"


def _json(status: int, value: object, headers: dict[str, str] | None = None) -> Response:
    return Response(dump_json(value), status, headers, "application/json")


async def _answer_error(_: object, error: ApiError) -> Response:
    headers = {429: {"retry-after": "1"}, 401: {"www-authenticate": "Bearer"}}.get(error.status, {})
    return _json(error.status, error.body, headers)


async def _answer_http_error(_: object, error: Any) -> Response:  # noqa: ANN401
    message = {404: "there is no such address", 405: "the address takes another method"}
    refusal = ApiError(error.status_code, message.get(error.status_code, str(error.detail)))
    return _json(error.status_code, refusal.body, error.headers)
