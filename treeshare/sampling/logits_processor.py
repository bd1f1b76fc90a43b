"""Logits processors: a user's own code between logits and tokens, with vLLM V1's interface.

A row is a sequence: the completions of a request whose tokens are the same so far. A processor is asked once
for all of them; when their tokens differ, the new rows are added with the tokens that they have. What it does
to a row must depend on its parameters, prompt, tokens and logits alone: then completions keep their bits.
"""

from __future__ import annotations

import enum
import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor

    from treeshare.config import EngineConfig
    from treeshare.sampling.params import SamplingParams

    AddedRequest = tuple[int, SamplingParams, list[int] | None, list[int]]
    RequestLogitsProcessor = Callable[..., Tensor]


class MoveDirectionality(enum.Enum):
    """How a row moves."""

    UNIDIRECTIONAL = enum.auto()
    """To a place that is free, or whose row is gone."""
    SWAP = enum.auto()
    """Both change places."""


@dataclass(frozen=True)
class BatchUpdate:
    """How the rows of a step differ from those of the step before; to be read as removed, added, moved.

    Attributes:
        batch_size: Rows now.
        removed: Rows that are gone; a place that an added row takes is not among them.
        added: Place, parameters, prompt and tokens of each new row. The list of tokens is the row's own: it
            grows with it. It is not empty where a row comes back, or was part of another one.
        moved: From, to, and how.
    """

    batch_size: int
    removed: Sequence[int]
    added: Sequence[AddedRequest]
    moved: Sequence[tuple[int, int, MoveDirectionality]]


class LogitsProcessor(ABC):
    """Changes the logits of all rows of a step.

    Args:
        config: The engine's configuration, where vLLM hands over its own.
        device: Where the logits are: the host.
        is_pin_memory: False.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ``ValueError`` if a request's parameters, mostly its ``extra_args``, are wrong for it."""
        del sampling_params  # by default none is

    def __init__(self, config: EngineConfig, device: torch.device, is_pin_memory: bool) -> None:
        """Called once, by ``LLM``."""
        del config, device, is_pin_memory  # for subclasses

    @abstractmethod
    def is_argmax_invariant(self) -> bool:
        """Whether the most likely token stays.

        Then it is applied after temperature and min-p, and not where all rows are greedy; else after masks
        and ``logit_bias``, before penalties.
        """

    @abstractmethod
    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Called before ``apply``.

        Args:
            batch_update: None where the rows are those of the step before.
        """

    @abstractmethod
    def apply(self, logits: Tensor) -> Tensor:
        """Change ``[num_rows, vocab_size]`` float32 logits, in place or not, and return them."""


class AdapterLogitsProcessor(LogitsProcessor):
    """Applies a callable per request, row by row.

    A step costs a call of Python for each row that has a callable; a processor that looks at all rows at once
    is faster.
    """

    def __init__(self, config: EngineConfig, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(config, device, is_pin_memory)
        self._rows: dict[int, Callable[[Tensor], Tensor]] = {}

    @abstractmethod
    def new_req_logits_processor(self, params: SamplingParams) -> RequestLogitsProcessor | None:
        """A function of ``(output_token_ids, logits)`` or ``(prompt_token_ids, output_token_ids, logits)``.

        It gets a row ``[vocab_size]`` and returns it changed. None: this request needs none.
        """

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Note which rows have a callable."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            self._rows.pop(index, None)
            function = self.new_req_logits_processor(params)
            if function is not None:
                self._rows[index] = _bound(function, prompt, output)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self._rows[source] = replaced

    def apply(self, logits: Tensor) -> Tensor:
        """Let each row's callable change it."""
        for index, function in self._rows.items():
            row = logits[index]
            changed = function(row)
            if changed is not row:
                logits[index] = changed
        return logits


def _bound(
    function: RequestLogitsProcessor, prompt: list[int] | None, output: list[int]
) -> Callable[[Tensor], Tensor]:
    """A request's callable as a function of its row; the lists are the request's own, and grow."""
    if len(inspect.signature(function).parameters) == 3:
        return lambda row: function(prompt, output, row)
    return lambda row: function(output, row)
