"""Requests in OpenAI's form: what is accepted, and what is refused and how.

The server and batch files read requests here and nowhere else.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import FailFast, Field, PlainValidator, ValidationError

from treeshare.errors import TreeshareError, one_line
from treeshare.files import parse_json
from treeshare.integrations.openai.messages import Fields, Message, Tool, chosen_tool
from treeshare.vllm_names import hint, others_of, refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_N = 1024
"""Completions of a prompt, unless a server is told otherwise; OpenAI's limit is 128."""

MOST_N = 1 << 20
"""Completions of a prompt that a server may be told to allow."""

MAX_PROMPTS = 2048
"""Prompts of a request, OpenAI's limit."""

MAX_COMPLETIONS = 4096
"""Prompts of a request times completions of each."""

MAX_STOPS, MAX_STOP_CHARS = 64, 4096
"""Stop strings of a request, and their characters together: each is looked for after every token."""

MAX_TOP_LOGPROBS = 20

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class ApiError(TreeshareError):
    """A refusal in OpenAI's form.

    Args:
        status: HTTP status.
        message: One sentence for the user.
        param: The field at fault.
        code: A word for programs.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


_FORMS = "text, a list of texts, token ids or a list of lists of token ids"


def _prompts(value: object) -> list[str | list[int]]:
    """A prompt in any of OpenAI's four forms, as a list."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected {_FORMS}, not empty")
    if len(value) > MAX_PROMPTS and not isinstance(value[0], int):
        raise ValueError(f"expected at most {MAX_PROMPTS} prompts")
    if all(isinstance(prompt, str) for prompt in value):
        return value
    rows = value if isinstance(value[0], list) else [value]
    if not all(isinstance(row, list) and all(map(_is_token_id, row)) for row in rows):
        raise ValueError(f"expected {_FORMS}")
    return rows


def _is_token_id(value: object) -> bool:
    return type(value) is int and -(2**31) <= value < 2**31


def _stops(value: object) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("expected a non-empty string, or a list of them")
    if len(stops) > MAX_STOPS or sum(map(len, stops)) > MAX_STOP_CHARS:
        raise ValueError(f"expected at most {MAX_STOPS} strings of {MAX_STOP_CHARS} characters together")
    return stops


class StreamOptions(Fields):
    """How to stream.

    Attributes:
        include_usage: Send the number of tokens at the end.
        include_obfuscation: Accepted, and nothing is obfuscated.
        continuous_usage_stats: vLLM's; only False.
    """

    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: Literal[False] = False


class JsonSchema(Fields):
    """The schema of a ``response_format``.

    Attributes:
        name: Accepted.
        description: Accepted.
        json_schema: The schema.
        strict: Accepted: a schema is always kept.
    """

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """What an answer's text must be.

    Attributes:
        type: ``text``, any JSON object, or what a schema says.
        json_schema: The schema.
    """

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class _Body(Fields):
    """What both endpoints take; OpenAI's fields, then vLLM's."""

    model: str | None = None
    n: int = Field(1, ge=1, le=MOST_N)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: Annotated[list[str], PlainValidator(_stops)] = Field([])
    stream: bool = False
    stream_options: StreamOptions | None = None
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0, lt=2**31)
    stop_token_ids: Annotated[list[int], FailFast()] = Field([], max_length=256)
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = Field([], max_length=128)
    response_format: ResponseFormat | None = None
    structured_outputs: dict[str, Any] | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)


class CompletionBody(_Body):
    """A request to ``/v1/completions``."""

    prompt: Annotated[list[str | list[int]], PlainValidator(_prompts)]
    max_tokens: int = Field(16, ge=0, lt=2**31)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool = False
    best_of: int | None = Field(None, ge=1, le=MOST_N)


class ChatBody(_Body):
    """A request to ``/v1/chat/completions``."""

    messages: Annotated[list[Message], FailFast()] = Field(min_length=1, max_length=4096)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    chat_template_kwargs: dict[str, Any] = Field({})
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    include_reasoning: bool = True
    parallel_tool_calls: bool = True
    thinking_token_budget: int | None = Field(None, ge=0, lt=2**31)
    tools: list[Tool] = Field([], max_length=128)
    tool_choice: Annotated[str, PlainValidator(chosen_tool)] = "auto"

    @property
    def forced_tool(self) -> str | None:
        """``required``, or the name of the tool that must be called; None where none must."""
        return None if self.tool_choice in ("none", "auto") else self.tool_choice.strip()

    @property
    def callable_tools(self) -> list[str]:
        """Names of the tools that the model may call."""
        return [] if self.tool_choice == "none" else [tool.function.name for tool in self.tools]


BODIES: dict[str, type[CompletionBody | ChatBody]] = {COMPLETIONS: CompletionBody, CHAT: ChatBody}
"""The form of a request to each endpoint."""


def read_json(content: bytes) -> object:
    """Parse a request.

    Raises:
        ApiError: Status 400, if it is not JSON, or not Unicode: JSON can express halves of characters.
    """
    try:
        values = parse_json(content)
        if b"\\ud" in content.lower():
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "the text is not Unicode: it has a lone surrogate", code="invalid_json") from None
    except ValueError as error:
        raise ApiError(400, f"not JSON: {one_line(error)}", code="invalid_json") from error
    return values


def parse_body(url: str, values: object, max_n: int = MAX_N) -> CompletionBody | ChatBody:
    """Read a request.

    Args:
        url: A key of ``BODIES``.
        values: Its parsed JSON.
        max_n: Most completions of a prompt.

    Raises:
        ApiError: Status 400, naming the field.
    """
    if not isinstance(values, dict):
        raise ApiError(400, "the body: expected a JSON object")
    given = {name: value for name, value in values.items() if value is not None}
    _answer_others(url, given)
    if isinstance(given.get("messages"), list):
        given["messages"] = [_without_empty(message) for message in given["messages"]]
    try:
        body = BODIES[url].model_validate(given)
    except ValidationError as error:
        raise refusal_of(error) from error
    if body.n > max_n:
        raise _refuse("n", f"got {body.n}, expected at most {max_n}; the server's --max-n is the limit")
    _check_together(body)
    return body


def _answer_others(url: str, given: dict[str, Any]) -> None:
    """Take out fields that treeshare does not have where they ask for nothing; refuse the others."""
    own, kind = _fields_of(url), "chat" if url == CHAT else "completions"
    for name in [name for name in given if name not in own]:
        value = given.pop(name)
        known = next((each for each in (kind, "server") if name in others_of(each)), None)
        reason = _unknown(url, name) if known is None else refusal(known, name, value)
        if reason is not None:
            code = "unknown_parameter" if known is None else "unsupported_parameter"
            raise ApiError(400, reason, param=one_line(name, 100), code=code)


@functools.cache
def _fields_of(url: str) -> frozenset[str]:
    return frozenset(BODIES[url].model_fields)


def _unknown(url: str, name: str) -> str:
    """Why a field that nobody knows there is refused."""
    shown = one_line(name, 100)
    other, kind = (COMPLETIONS, "completions") if url == CHAT else (CHAT, "chat")
    if name in _fields_of(other) | others_of(kind):
        return f"{shown}: a field of {other}, not of {url}"
    near = hint(name, _fields_of(url))
    return f"{shown}: unknown field" + (f"; {near}" if near else "")


def _without_empty(message: object) -> object:
    """A message without fields that say nothing, as an answer that is sent back has."""
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if value is not None and value != []}


def refusal_of(error: ValidationError) -> ApiError:
    """The first fault in OpenAI's form."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    where = one_line(where, 100)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{where}: unknown field", param=where, code="unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"{where}: required", param=where, code="missing_required_parameter")
    got = first["input"]
    shown = f", got {got!r}" if isinstance(got, (int, float)) and abs(got) < 10**20 else ""
    shown = f", got {one_line(repr(got), 60)}" if isinstance(got, str) else shown
    reason = one_line(first["msg"].removeprefix("Value error, "))
    message = f"{where}: {reason[:1].lower()}{reason[1:]}{shown}"
    return ApiError(400, message, param=where, code="invalid_value")


def _refuse(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param}: {message}", param=param, code="invalid_value")


def _check_together(body: CompletionBody | ChatBody) -> None:
    """Refuse values that do not go together."""
    if body.stream_options is not None and not body.stream:
        raise _refuse("stream_options", "only with stream")
    if body.prompt_logprobs is not None and body.stream:
        raise _refuse("prompt_logprobs", "not with stream")
    if body.response_format is not None and (fault := _fault_of(body.response_format, body)):
        raise _refuse("response_format", fault)
    if isinstance(body, ChatBody):
        _check_chat(body)
        return
    if body.best_of is not None and body.best_of != body.n:
        raise _refuse("best_of", "only the value of n is supported")
    if not body.max_tokens and not body.echo:
        raise _refuse("max_tokens", "got 0, expected at least 1 without echo")
    most = max(MAX_COMPLETIONS, body.n)
    if len(body.prompt) * body.n > most:
        raise _refuse("n", f"expected at most {most} completions of all prompts together")


def _check_chat(body: ChatBody) -> None:
    """Refuse a chat's values that do not go together."""
    _check_messages(body)
    if body.forced_tool is not None:
        _check_forced(body, body.forced_tool)
    if body.continue_final_message and body.add_generation_prompt:
        raise _refuse("continue_final_message", "only with add_generation_prompt false")
    if body.top_logprobs and not body.logprobs:
        raise _refuse("top_logprobs", "only with logprobs")
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise _refuse("max_tokens", "differs from max_completion_tokens; give one of them")


def _check_messages(body: ChatBody) -> None:
    """Refuse fields of messages that their role does not have."""
    for place, message in enumerate(body.messages):
        own = ("tool_calls", "reasoning", "reasoning_content") if message.role != "assistant" else ()
        for name in own:
            if getattr(message, name):
                raise _refuse(f"messages[{place}].{name}", "only in an assistant's message")
        if message.content is None and own:
            where = f"messages[{place}].content"
            raise ApiError(400, f"{where}: required", param=where, code="missing_required_parameter")


def _check_forced(body: ChatBody, forced: str) -> None:
    """Refuse a call that must be made where it cannot."""
    names = [tool.function.name for tool in body.tools]
    if not names or (forced != "required" and forced not in names):
        raise _refuse("tool_choice", f"got {forced!r:.80}, expected one of the tools")
    if "required" in names or len(set(names)) < len(names):
        raise _refuse("tools", "expected different names, and none of them `required`")
    if body.structured_outputs is not None or (
        body.response_format is not None and body.response_format.type != "text"
    ):
        raise _refuse("tool_choice", "not with structured_outputs or response_format")


def _fault_of(form: ResponseFormat, body: CompletionBody | ChatBody) -> str | None:
    """What is wrong with a ``response_format`` beside the other fields, in words."""
    if (form.json_schema is not None) != (form.type == "json_schema"):
        return "json_schema is given with type json_schema, and only then"
    if body.structured_outputs is not None and form.type != "text":
        return "not with structured_outputs; give one of them"
    return None


def model_name(body: CompletionBody | ChatBody, names: Sequence[str]) -> str:
    """The name under which the model is asked for; the first of ``names`` where none is given.

    Raises:
        ApiError: Status 404, if it is not among ``names``.
    """
    if body.model is not None and body.model not in names:
        raise unknown_model(body.model, names)
    return body.model or names[0]


def unknown_model(name: str, names: Sequence[str]) -> ApiError:
    """The refusal of a model that is not served."""
    message = f"model: got {one_line(repr(name), 100)}, expected {', '.join(names)}"
    return ApiError(404, message, param="model", code="model_not_found")
