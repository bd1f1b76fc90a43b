"""``AsyncLLM``: requests at any time, from coroutines, on one live tree."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from treeshare.engine.chat import DEFAULT_CHAT
from treeshare.engine.llm import LLM
from treeshare.engine.streaming import FinishedOutput, StepEvents, StreamOutput
from treeshare.errors import ConfigError
from treeshare.sampling import SamplingParams

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable
    from collections.abc import Sequence as Items
    from types import TracebackType
    from typing import Self

    from treeshare.engine.chat import ChatOptions, Message
    from treeshare.engine.engine import StepResult
    from treeshare.engine.prompts import Prompt
    from treeshare.engine.sequence import Request
    from treeshare.engine.stats import EngineStats

_NUM_STEP_TIMES = 1000
"""Latest steps whose seconds are kept: a server runs for months."""

Numbered = tuple[int, StreamOutput]


@dataclass(eq=False, slots=True)
class _Listener:
    """The receiver of the outputs of requests that came together, on its own event loop."""

    loop: asyncio.AbstractEventLoop
    requests: Items[Request]
    wants_tokens: bool
    outputs: asyncio.Queue[Numbered | BaseException] = field(default_factory=asyncio.Queue)
    numbers: dict[int, int] = field(default_factory=dict)  # of the requests, by their index in the engine
    num_left: int = 0


Mail = list[tuple[_Listener, Numbered | BaseException]]


def _post(mail: Mail) -> None:
    """Hand outputs over, from the engine's thread: one call for each event loop.

    Outputs for a loop that is closed are dropped.
    """

    def deliver(posted: Mail) -> None:
        for listener, output in posted:
            listener.outputs.put_nowait(output)

    for loop in {listener.loop for listener, _ in mail}:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(deliver, [item for item in mail if item[0].loop is loop])


class AsyncLLM:
    """A model that takes requests at any time and runs all of them as one tree.

    A new prompt shares prefixes with the prompts that run, and with those that ran before as long as the KV
    budget holds them. Prompts that come while others decode are computed beside them, few tokens a step. The
    engine runs on a thread of its own. An asynchronous context manager.

    Args:
        model: As for ``LLM``; or an ``LLM`` that nobody else uses, best with ``keep_nodes``.
        **options: As for ``LLM``.

    Attributes:
        llm: The model. While requests run, use it only to read: its tokenizer, its ``requests``.
        num_running: Completions that drew a token in the latest step and did not end.
        num_unfinished: Completions that run or wait.
        num_finished: Completions that have ended.
        num_tokens: Tokens generated.
    """

    def __init__(self, model: str | os.PathLike[str] | LLM, **options: Any) -> None:  # noqa: ANN401
        self.llm = model if isinstance(model, LLM) else LLM(model, **{"keep_nodes": True, **options})
        self.num_running = self.num_unfinished = self.num_finished = self.num_tokens = 0
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._listeners: dict[int, _Listener] = {}
        self._is_closed = False
        self._events = StepEvents(
            self.llm.output, wants_tokens=lambda index: self._listeners[index].wants_tokens
        )
        self._thread = threading.Thread(target=self._work, name="treeshare", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> EngineStats:
        """The engine's measurements since it was made."""
        return self.llm.stats

    @property
    def max_model_len(self) -> int:
        """Maximum number of tokens of a sequence, prompt and completion together."""
        return self.llm.max_model_len

    @property
    def kv_budget_bytes(self) -> int:
        """Maximum bytes of KV held at once."""
        return self.llm.kv_budget_bytes

    @property
    def kv_bytes_in_use(self) -> int:
        """Bytes of KV held now."""
        return self.llm.engine.store.bytes_in_use

    @property
    def is_running(self) -> bool:
        """Whether new requests would be run."""
        return self._thread.is_alive() and not self._is_closed

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        tokens: bool = False,
        first_index: int = 0,
    ) -> AsyncGenerator[StreamOutput, None]:
        """Generate ``n`` completions of a prompt; leaving the generator early cancels the rest.

        The same prompt with the same parameters gives the same completions each time; ask for others with
        another ``seed`` or ``first_index``.

        Args:
            prompt: As for ``LLM.generate``.
            sampling_params: ``SamplingParams()`` by default.
            tokens: Whether to yield each token, too.
            first_index: Index of the first completion.

        Yields:
            Each completion as it finishes, and tokens as they are drawn if asked.

        Raises:
            ConfigError: If the prompt or a parameter is out of range, or after ``close``.
            BudgetError: If the KV budget does not hold the prompt with one completion.
        """
        params = sampling_params or SamplingParams()
        request = self.llm.request(prompt, params, first_index=first_index)
        async with contextlib.aclosing(self.run([request], tokens=tokens)) as outputs:
            async for _, output in outputs:
                yield output

    async def chat(
        self,
        messages: Items[Message],
        sampling_params: SamplingParams | None = None,
        *,
        tokens: bool = False,
        first_index: int = 0,
        options: ChatOptions = DEFAULT_CHAT,
    ) -> AsyncGenerator[StreamOutput, None]:
        """As ``generate``, for a conversation; ``options`` say how it becomes a prompt.

        Raises as ``generate``; also a ``ConfigError`` if there is no chat template, or it refuses them.
        """
        prompt = self.llm.prompt_encoder.chat_prompt(messages, options)
        answers = self.generate(prompt, sampling_params, tokens=tokens, first_index=first_index)
        async with contextlib.aclosing(answers) as outputs:
            async for output in outputs:
                yield output

    async def run(
        self, requests: Items[Request], *, tokens: bool = False
    ) -> AsyncGenerator[tuple[int, StreamOutput], None]:
        """Run requests that ``LLM.requests`` made; they join the tree together.

        Args:
            requests: What to run.
            tokens: As for ``generate``.

        Yields:
            The number of a request among ``requests``, and an output of it; as ``generate``.

        Raises:
            ConfigError: As ``generate``.
            BudgetError: Likewise.
        """
        if self._is_closed:
            raise ConfigError("AsyncLLM: it was closed; make another")
        listener = _Listener(asyncio.get_running_loop(), requests, tokens)
        num_left = sum(len(request.completion_indices) for request in requests)
        self._commands.put(lambda: self._add(listener))
        try:
            while num_left:
                output = await listener.outputs.get()
                if isinstance(output, BaseException):
                    raise output
                num_left -= isinstance(output[1], FinishedOutput)
                yield output
        finally:
            self._commands.put(lambda: self._cancel(listener))

    def close(self) -> None:
        """Cancel everything and end the engine's thread; a second call does nothing."""
        self._is_closed = True
        self._commands.put(None)
        self._thread.join()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    # -- on the engine's thread --

    def _work(self) -> None:
        """The thread's loop: carry out commands and compute steps, until it is told to end."""
        engine = self.llm.engine
        while True:
            try:
                if not self._run_commands(wait=engine.is_idle):
                    break
                if not engine.is_idle:
                    result = engine.step()
                    self._count(result)
                    _post([self._addressed(*event) for event in self._events.of(result)])
            except Exception as error:  # everything is dropped: all that wait must know
                engine.clear()
                self._fail_all(error)
        self._run_commands(wait=False)  # what came since
        engine.clear()
        self._fail_all(ConfigError("AsyncLLM: it was closed"))

    def _run_commands(self, *, wait: bool) -> bool:
        """Carry out all commands that have come; False at the command to end."""
        while wait or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            command()
            wait = False
        return True

    def _count(self, result: StepResult) -> None:
        self.num_running = sum(len(sequence.completions) for sequence in result.drawn)
        self.num_tokens += self.num_running + len(result.finished)
        self.num_finished += len(result.finished)
        del self.stats.step_s[:-_NUM_STEP_TIMES]

    def _addressed(self, index: int, output: StreamOutput) -> tuple[_Listener, Numbered]:
        """An output with its listener; a finished completion is counted."""
        listener = self._listeners[index]
        if isinstance(output, FinishedOutput):
            listener.num_left -= 1
            self.num_unfinished -= 1
        return listener, (listener.numbers[index], output)

    def _add(self, listener: _Listener) -> None:
        engine, requests = self.llm.engine, listener.requests
        try:
            engine.check(requests)
            for number, request in enumerate(requests):
                index = engine.add_request(request)
                self._listeners[index], listener.numbers[index] = listener, number
        except Exception as error:  # the caller's
            self._cancel(listener)
            _post([(listener, error)])
        else:
            listener.num_left = sum(len(request.completion_indices) for request in requests)
            self.num_unfinished += listener.num_left

    def _cancel(self, listener: _Listener) -> None:
        """Cancel what a listener still waits for, if anything."""
        self.num_unfinished -= listener.num_left
        listener.num_left = 0
        for index in listener.numbers:
            if self._listeners.pop(index, None) is not None:
                self.llm.engine.cancel(index)
                self._events.forget(index)
        if not self._listeners:
            self.num_running = 0

    def _fail_all(self, error: BaseException) -> None:
        listeners = set(self._listeners.values())
        self._listeners.clear()
        _post([(listener, error) for listener in listeners])
        self.num_unfinished = self.num_running = 0
        for listener in listeners:
            listener.num_left = 0
