"""Endpoints that do not run the model: health, models, version, tokens of a text."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import FailFast, Field, ValidationError
from starlette.responses import Response
from starlette.routing import Route

from treeshare.engine.chat import ChatOptions
from treeshare.errors import ConfigError
from treeshare.files import dump_json
from treeshare.integrations.openai.messages import Fields, Message
from treeshare.integrations.openai.schema import ApiError, read_json, refusal_of, unknown_model

if TYPE_CHECKING:
    from treeshare.engine.async_llm import AsyncLLM
    from treeshare.integrations.openai.access import Access
    from treeshare.integrations.openai.lanes import Lanes
    from treeshare.integrations.openai.metrics import Metrics
    from treeshare.integrations.openai.server_options import ServerOptions
    from treeshare.integrations.openai.upload import Queue


class TokenizeBody(Fields):
    """A request to ``/tokenize``; vLLM's names.

    Attributes:
        model: Accepted.
        prompt: A text; or ``messages``.
        messages: A conversation.
        add_special_tokens: Whether a text gets the tokens that a prompt begins with.
        add_generation_prompt: Of a conversation.
        return_token_strs: Whether to tell the text of each token, too.
        chat_template_kwargs: Of a conversation.
    """

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=4096)
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, Any] = Field({})


class DetokenizeBody(Fields):
    """A request to ``/detokenize``; vLLM's names.

    Attributes:
        model: Accepted.
        tokens: Token ids.
    """

    model: str | None = None
    tokens: Annotated[list[int], FailFast()] = Field(max_length=1 << 20)


class Lookups:
    """Endpoints that run no model.

    Args:
        llm: The model.
        options: How the server answers.
        access: Who may ask.
        queue: Where a request is held while it comes.
        metrics: The server's.
        lanes: Where texts are tokenised, beside the loop.
        chat: Of conversations.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        options: ServerOptions,
        access: Access,
        queue: Queue,
        metrics: Metrics,
        lanes: Lanes,
        chat: ChatOptions,
    ) -> None:
        self._llm, self._options, self._access = llm, options, access
        self._queue, self._metrics, self._lanes, self._chat = queue, metrics, lanes, chat
        self._started = int(time.time())

    @property
    def routes(self) -> list[Route]:
        """The addresses."""
        return [
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._model, methods=["GET"]),
            Route("/v1/responses", self._responses, methods=["POST"]),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
            Route("/version", self._version, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._show_metrics, methods=["GET"]),
        ]

    async def _health(self, _: Any) -> Response:  # noqa: ANN401
        return answer(200, {"status": "ok"}) if self._llm.is_running else answer(503, {"status": "ended"})

    async def _version(self, _: Any) -> Response:  # noqa: ANN401
        try:
            return answer(200, {"version": version("treeshare")})
        except PackageNotFoundError:  # a checkout that is not installed
            return answer(200, {"version": "unknown"})

    async def _show_metrics(self, _: Any) -> Response:  # noqa: ANN401
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _models(self, request: Any) -> Response:  # noqa: ANN401
        self._access.check_key(request.headers)
        return answer(200, {"object": "list", "data": [self._card(name) for name in self._options.names]})

    async def _model(self, request: Any) -> Response:  # noqa: ANN401
        self._access.check_key(request.headers)
        name = request.path_params["name"]
        if name not in self._options.names:
            raise unknown_model(name, self._options.names)
        return answer(200, self._card(name))

    async def _responses(self, request: Any) -> Response:  # noqa: ANN401
        self._access.check_key(request.headers)
        message = "/v1/responses is not supported; use /v1/chat/completions with the same messages"
        raise ApiError(404, message, code="unsupported_endpoint")

    def _card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "treeshare",
            "max_model_len": self._llm.max_model_len,
        }

    async def _tokenize(self, request: Any) -> Response:  # noqa: ANN401
        content = await self._read(request)
        return answer(200, await self._lanes.run(len(content), lambda: self._tokens(content)))

    async def _detokenize(self, request: Any) -> Response:  # noqa: ANN401
        content = await self._read(request)
        return answer(200, await self._lanes.run(len(content), lambda: self._text(content)))

    async def _read(self, request: Any) -> bytes:  # noqa: ANN401
        self._access.check_key(request.headers)
        with self._queue.place() as place:
            return await self._options.upload(request).read(place)

    def _tokens(self, content: bytes) -> dict[str, Any]:
        body = _parsed(TokenizeBody, content)
        if (body.prompt is None) == (body.messages is None):
            message = "prompt: expected it or messages, not both"
            raise ApiError(400, message, param="prompt", code="invalid_value")
        encoder = self._llm.llm.prompt_encoder
        try:
            if body.prompt is not None:
                ids = encoder.encode(body.prompt, special_tokens=body.add_special_tokens)
            else:
                given = {**(self._chat.chat_template_kwargs or {}), **body.chat_template_kwargs}
                chat = ChatOptions(
                    chat_template=self._chat.chat_template,
                    chat_template_kwargs=given,
                    add_generation_prompt=body.add_generation_prompt,
                )
                messages = [message.model_dump(exclude_none=True) for message in body.messages or ()]
                ids = encoder.chat_prompt(messages, chat)["prompt_token_ids"]
        except ConfigError as error:
            raise ApiError(400, str(error), code="invalid_value") from error
        spelled = self._llm.llm.get_tokenizer().convert_ids_to_tokens(ids) if body.return_token_strs else None
        return {
            "count": len(ids),
            "max_model_len": self._llm.max_model_len,
            "tokens": ids,
            "token_strs": spelled,
        }

    def _text(self, content: bytes) -> dict[str, Any]:
        body = _parsed(DetokenizeBody, content)
        llm = self._llm.llm
        if not all(0 <= token < llm.vocab_size for token in body.tokens):
            message = f"tokens: expected token ids in [0, {llm.vocab_size})"
            raise ApiError(400, message, param="tokens", code="invalid_value")
        decode = llm.decoder(skip_special_tokens=False)
        if decode is None:
            raise ApiError(400, "tokens: the model has no tokenizer", param="tokens", code="invalid_value")
        return {"prompt": decode(body.tokens)}


def _parsed(kind: Any, content: bytes) -> Any:  # noqa: ANN401
    values = read_json(content)
    if not isinstance(values, dict):
        raise ApiError(400, "the body: expected a JSON object")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise refusal_of(error) from error


def answer(status: int, value: object, headers: dict[str, str] | None = None) -> Response:
    """An answer of JSON."""
    return Response(dump_json(value), status, headers, "application/json")
