"""``AsyncLLM``: requests at any time, from coroutines, on one live tree."""

from __future__ import annotations

import asyncio
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treeshare.config import require_int
from treeshare.engine.llm import LLM
from treeshare.engine.streaming import FinishedOutput, StepEvents, StreamOutput
from treeshare.errors import ConfigError
from treeshare.sampling import SamplingParams

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable
    from types import TracebackType
    from typing import Self

    from treeshare.engine.prompts import Prompt
    from treeshare.engine.sequence import Request
    from treeshare.engine.stats import EngineStats


@dataclass(eq=False, slots=True)
class _Listener:
    """Where a request's outputs go."""

    loop: asyncio.AbstractEventLoop
    outputs: asyncio.Queue[StreamOutput | BaseException]
    wants_tokens: bool
    index: int | None = None

    def send(self, output: StreamOutput | BaseException) -> None:
        """Hand over an output, from the engine's thread; nobody listens on a loop that has ended."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.outputs.put_nowait, output)


class AsyncLLM:
    """A model that takes requests at any time and runs all of them as one tree.

    A prefix of a new prompt is found among the prompts that run, and among those that ran before as long as
    the KV budget holds them. Prompts that come while others decode are computed beside them, few tokens a
    step. The engine runs on a thread of its own; an asynchronous context manager.

    Args:
        model: As for ``LLM``.
        **options: Likewise.
    """

    def __init__(self, model: str | os.PathLike[str], **options: Any) -> None:  # noqa: ANN401
        self.llm = LLM(model, **{"keep_nodes": True, **options})
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._listeners: dict[int, _Listener] = {}
        self._is_closed = False
        decode = self.llm.loaded.decoder(skip_special_tokens=True)
        self._events = StepEvents(self.llm.output, decode, lambda index: self._listeners[index].wants_tokens)
        self._thread = threading.Thread(target=self._work, name="treeshare", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> EngineStats:
        """What the engine measured of itself since it was made."""
        return self.llm.stats

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
        require_int("first_index", first_index, low=0, high=2**31 - 1)
        if self._is_closed:
            raise ConfigError("AsyncLLM: it was closed; make another")
        params = sampling_params or SamplingParams()
        request = self.llm.request(prompt, params, first_index=first_index)
        listener = _Listener(asyncio.get_running_loop(), asyncio.Queue(), tokens)
        self._commands.put(lambda: self._add(request, listener))
        num_left = params.n
        try:
            while num_left:
                output = await listener.outputs.get()
                if isinstance(output, BaseException):
                    raise output
                num_left -= isinstance(output, FinishedOutput)
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
        engine = self.llm.engine
        while self._obey(wait=engine.is_idle):
            if engine.is_idle:
                continue
            try:
                for index, output in self._events.of(engine.step()):
                    self._listeners[index].send(output)
            except Exception as error:  # the engine has dropped everything: whoever waits must know
                self._fail_all(error)
        self._obey(wait=False)  # what came since
        engine.clear()
        self._fail_all(ConfigError("AsyncLLM: it was closed"))

    def _obey(self, *, wait: bool) -> bool:
        """Carry out all commands that have come; False if it is to end."""
        while wait or not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            command()
            wait = False
        return True

    def _add(self, request: Request, listener: _Listener) -> None:
        try:
            listener.index = self.llm.engine.add_request(request)
        except Exception as error:  # belongs to whoever asked
            listener.send(error)
        else:
            self._listeners[listener.index] = listener

    def _cancel(self, listener: _Listener) -> None:
        if listener.index in self._listeners and listener.index is not None:
            del self._listeners[listener.index]
            self.llm.engine.cancel(listener.index)
            self._events.forget(listener.index)

    def _fail_all(self, error: BaseException) -> None:
        for listener in self._listeners.values():
            listener.send(error)
        self._listeners.clear()
