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
from treeshare.vllm_names import own_names, refuse_others

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable
    from collections.abc import Sequence as Items
    from types import TracebackType
    from typing import Self

    from treeshare.engine.chat import ChatOptions, Message
    from treeshare.engine.prompts import Prompt
    from treeshare.engine.sequence import Request
    from treeshare.engine.stats import EngineStats
    from treeshare.engine.step import StepResult

SILENCE_S = 1.0
"""Seconds without a request after which the memory of freed KV goes back to the system."""

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


def _post(mail: Mail) -> list[_Listener]:
    """Hand outputs over, from the engine's thread: one call for each event loop.

    Returns:
        The listeners whose loop is closed: they get nothing any more.
    """

    def deliver(posted: Mail) -> None:
        for listener, output in posted:
            listener.outputs.put_nowait(output)

    unreachable: list[_Listener] = []
    for loop in {listener.loop for listener, _ in mail}:
        own = [item for item in mail if item[0].loop is loop]
        try:
            loop.call_soon_threadsafe(deliver, own)
        except RuntimeError:
            unreachable += {listener: None for listener, _ in own}
    return unreachable


class _Commands:
    """What the engine's thread is asked to do, in order.

    Whether a command is taken, and which is the last, is decided under one lock: nobody waits for an answer
    that nobody will give.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._refusal: str | None = None

    def put(self, command: Callable[[], None]) -> None:
        """Ask for something.

        Raises:
            ConfigError: After ``end``: it would not be done any more.
        """
        with self._lock:
            if self._refusal is not None:
                raise ConfigError(self._refusal)
            self._queue.put(command)

    def end(self, refusal: str) -> None:
        """Take no more commands, with this message; those that came are carried out."""
        with self._lock:
            if self._refusal is None:
                self._refusal = refusal
                self._queue.put(None)

    @property
    def has_ended(self) -> bool:
        """Whether commands are refused."""
        return self._refusal is not None

    def run(self, *, wait: bool, in_silence: Callable[[], None] | None = None) -> bool:
        """Carry out all commands that have come; False at the end of all.

        Args:
            wait: Until there is one.
            in_silence: Called once if none has come for ``SILENCE_S``.
        """
        while wait or not self._queue.empty():
            try:
                command = self._queue.get(timeout=SILENCE_S if in_silence else None)
            except queue.Empty:
                if in_silence:
                    in_silence()
                in_silence = None
                continue
            if command is None:
                return False
            command()
            wait = False
        return True

    def run_out(self) -> None:
        """After ``end``: carry out what has come; a command that fails, however, does not stop the others."""
        is_over = False
        while not is_over:
            with contextlib.suppress(BaseException):
                is_over = not self.run(wait=True)


class AsyncLLM:
    """A model that takes requests at any time and runs all of them as one tree.

    A new prompt shares prefixes with the prompts that are running, and with earlier ones as long as the KV
    budget keeps them. A prompt that arrives while others decode is computed in the same steps, a few tokens
    at a time. The engine runs in its own thread. This is an asynchronous context manager.

    Args:
        model: As for ``LLM``; or an ``LLM`` that is not used elsewhere, preferably with ``keep_nodes``.
        **options: As for ``LLM``.

    Attributes:
        llm: The model. While requests run, only read from it, such as its tokenizer or ``requests``.
        num_running: Completions that drew a token in the latest step and did not end.
        num_unfinished: Completions that are running or waiting.
        num_finished: Completions that have ended.
        num_tokens: Tokens generated.
    """

    def __init__(self, model: str | os.PathLike[str] | LLM, **options: Any) -> None:  # noqa: ANN401
        self.llm = model if isinstance(model, LLM) else LLM(model, **{"keep_nodes": True, **options})
        self.num_running = self.num_unfinished = self.num_finished = self.num_tokens = 0
        self._commands = _Commands()
        self._listeners: dict[int, _Listener] = {}
        self._events = StepEvents(
            self.llm.output, wants_tokens=lambda index: self._listeners[index].wants_tokens
        )
        self._thread = threading.Thread(target=self._work, name="treeshare", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> EngineStats:
        """The engine's measurements since it was created."""
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
        """Whether new requests are accepted."""
        return self._thread.is_alive() and not self._commands.has_ended

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        tokens: bool = False,
        first_index: int = 0,
        **others: object,
    ) -> AsyncGenerator[StreamOutput, None]:
        """Generate ``n`` completions of a prompt; leaving the generator early cancels the rest.

        The same prompt with the same parameters always gives the same completions; for different ones, change
        ``seed`` or ``first_index``.

        Args:
            prompt: As for ``LLM.generate``.
            sampling_params: ``SamplingParams()`` by default.
            tokens: Whether to yield each token too.
            first_index: Index of the first completion.
            others: vLLM's further names, as for ``LLM``.

        Yields:
            Each completion as soon as it finishes; with ``tokens`` each token as soon as it is drawn.

        Raises:
            ConfigError: If the prompt or a parameter is out of range, or after ``close``.
            BudgetError: If the KV budget does not hold the prompt with one completion.
            Exception: The error that ended the request or the engine's step.
        """
        refuse_others("AsyncLLM.generate", others, own_names(AsyncLLM.generate))
        params = SamplingParams() if sampling_params is None else sampling_params
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
        """Like ``generate``, for a conversation; ``options`` are those of ``ChatOptions``.

        Raises as ``generate``; also a ``ConfigError`` if there is no chat template, or if it rejects the
        messages.
        """
        prompt = self.llm.prompt_encoder.chat_prompt(messages, options)
        answers = self.generate(prompt, sampling_params, tokens=tokens, first_index=first_index)
        async with contextlib.aclosing(answers) as outputs:
            async for output in outputs:
                yield output

    async def run(
        self, requests: Items[Request], *, tokens: bool = False
    ) -> AsyncGenerator[tuple[int, StreamOutput], None]:
        """Run several requests made by ``LLM.requests``; they join the tree together.

        Args:
            requests: What to run.
            tokens: As for ``generate``.

        Yields:
            The number of a request in ``requests``, and one of its outputs, as for ``generate``.

        Raises:
            ConfigError: As ``generate``.
            BudgetError: Likewise.
        """
        if not self._thread.is_alive():  # a process that was forked has none
            self._commands.end("AsyncLLM: its thread has ended; make another")
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
            with contextlib.suppress(ConfigError):  # closed: nothing is left to cancel
                self._commands.put(lambda: self._cancel(listener))

    def close(self) -> None:
        """Cancel everything and end the engine's thread; a second call does nothing."""
        self._commands.end("AsyncLLM: it was closed; make another")
        if threading.current_thread() is not self._thread:
            self._thread.join()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    # -- on the engine's thread --

    def _work(self) -> None:
        """The thread's life: whatever ends it, all that wait learn of it."""
        error: Exception = ConfigError("AsyncLLM: it was closed; make another")
        try:
            while self._go_on():
                pass
        except BaseException as ending:  # SystemExit, for one: raised in a thread, it ends nothing else
            error = RuntimeError(f"AsyncLLM: its thread was ended by {ending!r}; make another")
            self._commands.end(str(error))
            self._commands.run_out()
        finally:
            self._fail_all(error)
            self.llm.engine.clear()

    def _go_on(self) -> bool:
        """Carry out commands and compute a step, which may fail; False at the end."""
        engine = self.llm.engine
        try:
            if not self._commands.run(wait=engine.is_idle, in_silence=engine.store.trim):
                return False
            if not engine.is_idle:
                result = engine.step()
                self._count(result)
                self._deliver(result)
        except Exception as error:  # no request's: everything is dropped, and all that wait must know
            engine.clear()
            self._fail_all(error)
        return True

    def _deliver(self, result: StepResult) -> None:
        """Post a step's outputs; requests that failed, or that nobody can hear of any more, are cancelled."""
        mail: Mail = []
        ended: list[_Listener] = []
        for index, output in self._events.of(result):
            listener = self._listeners[index]
            if isinstance(output, Exception):
                mail.append((listener, output))
                ended.append(listener)
            else:
                mail.append((listener, (listener.numbers[index], output)))
                if isinstance(output, FinishedOutput):
                    listener.num_left -= 1
                    self.num_unfinished -= 1
                    ended += [] if listener.num_left else [listener]
        for listener in (*_post(mail), *ended):
            self._cancel(listener)

    def _count(self, result: StepResult) -> None:
        self.num_running = sum(len(sequence.completions) for sequence in result.drawn)
        self.num_tokens += self.num_running + len(result.finished)
        self.num_finished += len(result.finished)

    def _add(self, listener: _Listener) -> None:
        try:
            indices = self.llm.engine.add_requests(listener.requests)
        except Exception as error:  # the caller's
            _post([(listener, error)])
            return
        for number, index in enumerate(indices):
            self._listeners[index], listener.numbers[index] = listener, number
        listener.num_left = sum(len(request.completion_indices) for request in listener.requests)
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
        for index in self._listeners:
            self._events.forget(index)
        self._listeners.clear()
        _post([(listener, error) for listener in listeners])
        self.num_unfinished = self.num_running = 0
        for listener in listeners:
            listener.num_left = 0
