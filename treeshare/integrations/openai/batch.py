"""Files of requests in OpenAI's batch form, run as one tree; killed at any moment, they continue."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from treeshare.config import ARITHMETIC
from treeshare.engine.chat import DEFAULT_CHAT
from treeshare.errors import DataError, one_line
from treeshare.files import dump_json, parse_json, read_lines, without_mark
from treeshare.integrations.openai.job import make_job
from treeshare.integrations.openai.reply import Reply
from treeshare.integrations.openai.schema import BODIES, ApiError, model_name, parse_body, read_json
from treeshare.integrations.openai.token_rows import TokenSpeller
from treeshare.runs.journal import LineFile
from treeshare.runs.record import TornLineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from treeshare.engine.chat import ChatOptions
    from treeshare.engine.llm import LLM
    from treeshare.engine.node_scores import PromptLogprobs
    from treeshare.engine.outputs import CompletionOutput
    from treeshare.engine.sequence import Request
    from treeshare.integrations.openai.job import Job

MAX_REQUEST_BYTES = 4 << 20
"""A longer line becomes an error line."""


class OutputLine(BaseModel):
    """A line of the output.

    Attributes:
        id: ``batch_req_`` and a digest of the input line, the model's name and the seed.
        custom_id: The line's name; None where the input line has none.
        response: ``{"status_code", "request_id", "body"}``.
        error: None: every fault has a response with its status.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    id: str
    custom_id: str | None
    response: dict[str, Any]
    error: None = None

    @property
    def key(self) -> str:
        """What makes it one of a kind in its file."""
        return self.id

    @property
    def name(self) -> str:
        """What messages call it."""
        return one_line(self.custom_id or self.id)

    def line(self) -> bytes:
        """Its line, newline included."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return dump_json(values) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read a line.

        Raises:
            TornLineError: If it is not JSON.
            DataError: If it is JSON but not a line of an output.
        """
        try:
            values = parse_json(line)
        except ValueError as error:
            raise TornLineError(f"not JSON: {one_line(error)}") from error
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise DataError("not a line that treeshare batch has written") from error


@dataclass(frozen=True, kw_only=True)
class InputLine:
    """A line of the input.

    Attributes:
        digest: Of the line, the model's name, the seed, the chat options and ``config.ARITHMETIC``.
        custom_id: Its name, or None where it has none.
        job: What runs, or None.
        refusal: Why nothing runs, or None.
    """

    digest: str
    custom_id: str | None
    job: Job | None = None
    refusal: ApiError | None = None

    @property
    def id(self) -> str:
        """As ``OutputLine.id``."""
        return f"batch_req_{self.digest}"

    def output(self, status: int, body: dict[str, Any]) -> OutputLine:
        """The line that answers it."""
        response = {"status_code": status, "request_id": f"req_{self.digest}", "body": body}
        return OutputLine(id=self.id, custom_id=self.custom_id, response=response)


def read_batch(
    path: Path, llm: LLM, *, names: Sequence[str], seed: int = 0, chat: ChatOptions = DEFAULT_CHAT
) -> list[InputLine]:
    """Read a file of requests; a bad line becomes a refusal.

    A request without a seed gets one made of ``seed`` and its ``custom_id``: it runs the same each time.

    Args:
        path: One JSON object a line: ``custom_id``, ``method``, ``url``, ``body``. Empty lines are left out.
        llm: The model.
        names: Names of the model in requests.
        seed: Run seed.
        chat: How conversations become prompts.

    Raises:
        DataError: If the file cannot be read, or a ``custom_id`` comes twice.
    """
    chat_key = json.dumps([chat.chat_template, chat.chat_template_kwargs], sort_keys=True)
    lines: list[InputLine] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, "batch"), 1):
        content = without_mark(line, path, "batch") if number == 1 else line
        if not content.strip():
            continue
        custom_id, job, refusal = None, None, None
        try:
            values = _object(content)
            custom_id = _custom_id(values)
            job = _job(values, llm, names, int(_digest(str(seed), custom_id)[:16], 16), chat)
        except ApiError as error:
            refusal = error
        if custom_id is not None and seen.setdefault(custom_id, number) != number:
            raise DataError(
                f"{one_line(path)}, line {number}: custom_id {one_line(repr(custom_id), 100)} is also in "
                f"line {seen[custom_id]}; give each line a different one"
            )
        place = str(number) if custom_id is None else ""
        digest = _digest(f"arithmetic {ARITHMETIC}", names[0], str(seed), chat_key, place, content.strip())[
            :32
        ]
        lines.append(InputLine(digest=digest, custom_id=custom_id, job=job, refusal=refusal))
    return lines


class BatchRun:
    """What of a batch is left to do.

    Args:
        llm: The model.
        lines: What ``read_batch`` gave.
        output: Where answers go; those that it holds are not made again.

    Attributes:
        requests: For the engine. Those of answered lines have no completions.
        num_held: Lines that were answered before.

    Raises:
        DataError: If the output holds an answer to a line that the input does not have.
    """

    def __init__(self, llm: LLM, lines: Sequence[InputLine], output: LineFile[OutputLine]) -> None:
        self._llm, self._lines, self._output = llm, lines, output
        unknown_ids = output.keys - {line.id for line in lines}
        if unknown_ids:
            first = next(held.name for held in output.records() if held.id in unknown_ids)
            raise DataError(
                f"{one_line(output.path)}: the answer to {first} belongs to no line of the present input; "
                "the input, the model's name, --seed, --chat-template, "
                "--chat-template-kwargs or treeshare's arithmetic has changed; name another output"
            )
        self.num_held = len(output.keys)
        self._replies: dict[str, Reply] = {}
        self._owners: list[tuple[InputLine, int]] = []
        self.requests: list[Request] = []
        for line in lines:
            for number, request in enumerate(line.job.requests if line.job else ()):
                is_held = line.id in output.keys
                self.requests.append(replace(request, completion_indices=()) if is_held else request)
                self._owners.append((line, number))

    def run(self, on_completion: Callable[[object], None] = lambda _: None) -> None:
        """Answer what is left; each answer is written as soon as its last completion is there.

        Args:
            on_completion: Called with each finished completion.

        Raises:
            DataError: If an answer cannot be written.
        """
        for line in self._lines:
            if line.refusal is not None and line.id not in self._output.keys:
                self._output.append(line.output(line.refusal.status, line.refusal.body))
        speller = TokenSpeller(self._llm)
        outputs: dict[str, list[tuple[int, CompletionOutput]]] = {}
        prompts: dict[str, dict[int, PromptLogprobs | None]] = {}
        for result in self._llm.engine.run_steps(self.requests):
            for completion in result.finished:
                line, number = self._owners[completion.request_index]
                ready = outputs.setdefault(line.id, [])
                ready.append((number, self._llm.output(completion)))
                found = prompts.setdefault(line.id, {})
                found[number] = completion.prompt_logprobs
                on_completion(completion)
                assert line.job is not None
                if len(ready) == line.job.body.n * len(line.job.requests):
                    reply = Reply(self._llm, line.job, speller, line.digest)
                    for prompt, logprobs in prompts.pop(line.id).items():
                        reply.note_prompt(prompt, logprobs)
                    self._output.append(line.output(200, reply.whole(outputs.pop(line.id))))
            for index, error in result.failed.items():
                self._refuse(self._owners[index][0], error)

    def _refuse(self, line: InputLine, error: Exception) -> None:
        """A line whose request failed; its other requests never make an answer. The others continue."""
        if line.id not in self._output.keys:
            reason = ApiError(500, f"{type(error).__name__}: {one_line(error)}", code="internal_error")
            self._output.append(line.output(reason.status, reason.body))


def open_output(path: Path) -> LineFile[OutputLine]:
    """The file of answers, made if missing; a torn last line is cut away.

    Raises:
        DataError: If it cannot be read or written, or is no such file.
        RunLockedError: If another process is writing to it.
    """
    return LineFile(path, OutputLine.parse)


def _digest(*parts: str | bytes) -> str:
    """SHA-256 of parts, with their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()


def _object(content: bytes) -> dict[str, Any]:
    """A line's JSON.

    Raises:
        ApiError: Status 400.
    """
    if len(content) > MAX_REQUEST_BYTES:
        raise ApiError(400, f"the line is longer than {MAX_REQUEST_BYTES} bytes", code="body_too_large")
    values = read_json(content)
    if not isinstance(values, dict):
        raise ApiError(400, "the line: expected a JSON object", code="invalid_json")
    return values


def _custom_id(values: dict[str, Any]) -> str:
    custom_id = values.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise ApiError(400, "custom_id: expected text, not empty", param="custom_id")
    return custom_id


def _job(values: dict[str, Any], llm: LLM, names: Sequence[str], seed: int, chat: ChatOptions) -> Job:
    if values.get("method") != "POST":
        raise ApiError(400, "method: expected POST", param="method")
    url = values.get("url")
    if not isinstance(url, str) or url not in BODIES:
        raise ApiError(400, f"url: expected one of {', '.join(BODIES)}", param="url")
    body = parse_body(url, values.get("body"))
    if body.stream:
        raise ApiError(400, "stream: not in a batch", param="stream")
    model = model_name(body, names)
    return make_job(llm, body, model=model, seed=seed, chat=chat)
