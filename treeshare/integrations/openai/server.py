"""OpenAI's endpoints over ``AsyncLLM``: a FastAPI application."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from treeshare.engine.chat import ChatOptions
from treeshare.engine.streaming import FinishedOutput
from treeshare.files import dump_json
from treeshare.integrations.openai.access import Access
from treeshare.integrations.openai.characters import CharacterLimit
from treeshare.integrations.openai.job import make_job
from treeshare.integrations.openai.lanes import Lanes
from treeshare.integrations.openai.lookups import Lookups, answer
from treeshare.integrations.openai.metrics import Metrics
from treeshare.integrations.openai.reply import Reply
from treeshare.integrations.openai.schema import (
    CHAT,
    COMPLETIONS,
    ApiError,
    model_name,
    parse_body,
    read_json,
)
from treeshare.integrations.openai.stream import EventStream, WholeAnswer, connection_of, unless_gone
from treeshare.integrations.openai.token_rows import TokenSpeller
from treeshare.integrations.openai.upload import Queue, Upload

_LOG = logging.getLogger("treeshare.server")
_ACCESS = logging.getLogger("treeshare.access")
"""A line for each request, without its prompt or its answer."""

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine

    from treeshare.engine.async_llm import AsyncLLM
    from treeshare.engine.outputs import CompletionOutput
    from treeshare.integrations.openai.connection import Connection
    from treeshare.integrations.openai.job import Job
    from treeshare.integrations.openai.server_options import ServerOptions
    from treeshare.integrations.openai.stream import Receive, Send


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
        self._access = Access(options.api_key, options.hosts, is_local=options.is_local)
        self._queue = Queue(options.max_queue, options.max_held_bytes)
        self._chat = ChatOptions(
            chat_template=options.chat_template, chat_template_kwargs=options.chat_template_kwargs
        )
        self._metrics = Metrics(llm, self._queue)
        self._speller = TokenSpeller(llm.llm)
        self._lanes = Lanes()
        self._lookups = Lookups(
            llm, options, self._access, self._queue, self._metrics, self._lanes, self._chat
        )
        self._character_limit = CharacterLimit.of(llm.llm.loaded.tokenizer, llm.max_model_len)
        self.app = FastAPI(
            routes=[
                Route(COMPLETIONS, self._endpoint(COMPLETIONS), methods=["POST"]),
                Route(CHAT, self._endpoint(CHAT), methods=["POST"]),
                *self._lookups.routes,
            ],
            exception_handlers={
                ApiError: _answer_error,
                HTTPException: _answer_http_error,
            },
            openapi_url=None,
        )
        self.app.add_middleware(_Gate, access=self._access)

    def _endpoint(self, url: str) -> Callable[[Any], Coroutine[Any, Any, Any]]:
        async def respond(request: Any) -> Any:  # noqa: ANN401
            upload = self._options.upload(request)
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
                response = answer(500, _FAULT.body)
            self._metrics.requests.labels(url, response.status_code).inc()
            _ACCESS.info("%s %s %d", request.method, url, response.status_code)
            return response

        return respond

    async def _answer(self, url: str, request: Any, upload: Upload) -> Any:  # noqa: ANN401
        self._access.check_key(request.headers)
        with contextlib.ExitStack() as stack:
            body = await upload.read(stack.enter_context(self._queue.place()))
            started = time.perf_counter()
            stack.callback(self._observe_end, url, started)
            connection = connection_of(request.scope)
            job = await self._lanes.run(len(body), lambda: self._make_job(url, body, connection))
            self._metrics.prompt_tokens.inc(sum(len(request.prompt_token_ids) for request in job.requests))
            reply = Reply(self._llm.llm, job, self._speller)
            if job.body.stream:
                events = self._events(job, reply, started)
                return EventStream(events, stack.pop_all(), self._options.max_unread_bytes)
            outputs: list[tuple[int, CompletionOutput]] = []
            content = b""

            async def collect() -> None:
                nonlocal content
                async with contextlib.aclosing(self._llm.run(job.requests)) as events:
                    async for number, output in events:
                        if not outputs:
                            self._metrics.first_token_s.observe(time.perf_counter() - started)
                        assert isinstance(output, FinishedOutput)
                        reply.note_prompt(number, output.prompt_logprobs)
                        outputs.append((number, output.completion))
                content = await self._lanes.run(_size(outputs), lambda: dump_json(reply.whole(outputs)))

            await unless_gone(collect(), request.receive)
            return WholeAnswer(content, stack.pop_all())

    def _observe_end(self, url: str, started: float) -> None:
        self._metrics.request_s.labels(url).observe(time.perf_counter() - started)

    def _make_job(self, url: str, content: bytes, connection: Connection | None) -> Job:
        """Parse and tokenise a request, beside the loop, unless its client has gone meanwhile."""
        if connection is not None and connection.is_lost:
            raise ClientDisconnect
        body = parse_body(url, read_json(content))
        return make_job(
            self._llm.llm,
            body,
            model=model_name(body, self._options.names),
            seed=secrets.randbits(64),
            chat=self._chat,
            character_limit=self._character_limit,
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


class _Gate:
    """Refuses requests for another server, or in another protocol, whatever they ask for.

    Args:
        app: What answers the others.
        access: Says which.
    """

    def __init__(self, app: Any, access: Access) -> None:  # noqa: ANN401
        self._app, self._access = app, access

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:  # noqa: ANN401
        answering = self._app
        try:
            if scope["type"] == "http":
                self._access.check_protocol(scope["http_version"])
                self._access.check_host(Headers(scope=scope))
        except ApiError as error:
            answering = answer(error.status, error.body, {"connection": "close"})
        await answering(scope, receive, send)


def _size(outputs: list[tuple[int, CompletionOutput]]) -> int:
    """About how many bytes an answer has."""
    return sum(
        len(output.token_ids) * (4 + 30 * sum(map(len, output.logprobs[:1])))
        if output.logprobs
        else len(output.text)
        for _, output in outputs
    )


_FAULT = ApiError(500, "the server could not answer; its log says why", code="internal_error")


def _event(value: object) -> bytes:
    return b"data: " + dump_json(value) + b"\n\n"


async def _answer_error(_: object, error: ApiError) -> Response:
    headers = {429: {"retry-after": "1"}, 401: {"www-authenticate": "Bearer"}}.get(error.status, {})
    return answer(error.status, error.body, headers)


async def _answer_http_error(_: object, error: Any) -> Response:  # noqa: ANN401
    message = {404: "there is no such address", 405: "the address takes another method"}
    refusal = ApiError(error.status_code, message.get(error.status_code, str(error.detail)))
    return answer(error.status_code, refusal.body, error.headers)
