"""The logits processors of an ``LLM``, and which rows they know."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from treeshare.errors import ConfigError
from treeshare.failures import error_line
from treeshare.sampling.logits_processor import BatchUpdate, MoveDirectionality

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Items

    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.config import EngineConfig
    from treeshare.engine.sequence import Sequence
    from treeshare.sampling import SamplingParams

_METHODS = ("apply", "is_argmax_invariant", "update_state")
_EXPECTED = 'subclasses of LogitsProcessor, or their names as "module:Class"'


class ProcessorBatch:
    """Hands a step's rows to logits processors, as ``sampler.Hooks``.

    A row keeps its place among them from step to step: what has left is replaced by what is new, and then by
    the last ones.

    Args:
        processors: Classes, or their names.
        config: The engine's.

    Raises:
        ConfigError: If one is no such class, or cannot be made.
    """

    def __init__(self, processors: Items[type | str], config: EngineConfig) -> None:
        if isinstance(processors, str) or not isinstance(processors, (list, tuple)):
            raise ConfigError.of("logits_processors", got=processors, expected=f"a list of {_EXPECTED}")
        self._classes = [_class_of(processor) for processor in processors]
        made = [_made(kind, config) for kind in self._classes]
        self._all = made
        self._before = [processor for processor in made if not processor.is_argmax_invariant()]
        self._after = [processor for processor in made if processor.is_argmax_invariant()]
        self._places: list[Sequence] = []
        self._order: NDArray[np.int64] = np.arange(0)  # the row of each place

    def __bool__(self) -> bool:
        return bool(self._all)

    def validate(self, params: SamplingParams) -> None:
        """Raise ``ConfigError`` if a processor refuses a request's parameters."""
        for kind in self._classes:
            validate = getattr(kind, "validate_params", None)
            if validate is not None:
                try:
                    validate(params)
                except ConfigError:
                    raise
                except ValueError as error:
                    raise ConfigError(f"logits_processors: {kind.__name__}: {error_line(error)}") from error

    def update(self, rows: Items[Sequence]) -> None:
        """Tell the processors which rows a step has: a sequence for each."""
        update = self._update(rows)
        row_of = {sequence: row for row, sequence in enumerate(rows)}
        self._order = np.array([row_of[sequence] for sequence in self._places], np.int64)
        for processor in self._all:
            processor.update_state(update)

    def before_penalties(self, logits: Tensor) -> Tensor:
        """See ``sampler.Hooks``."""
        return self._apply(self._before, logits)

    def after_temperature(self, logits: Tensor) -> Tensor:
        """See ``sampler.Hooks``."""
        return self._apply(self._after, logits)

    @property
    def is_after_temperature(self) -> bool:
        """See ``sampler.Hooks``."""
        return bool(self._after)

    def _apply(self, processors: Items[Any], logits: Tensor) -> Tensor:
        if not processors:
            return logits
        order = torch.from_numpy(self._order)
        ordered = logits[order]  # a copy: rows by their places
        for processor in processors:
            ordered = processor.apply(ordered)
        changed = torch.empty_like(ordered)
        changed[order] = ordered
        return changed

    def _update(self, rows: Items[Sequence]) -> BatchUpdate | None:
        """Give new rows their places; None where nothing has changed."""
        now, before = set(rows), set(self._places)
        free = [place for place, sequence in enumerate(self._places) if sequence not in now]
        new = [sequence for sequence in rows if sequence not in before]
        if not free and not new:
            return None
        added, moved = [], []
        for sequence in new:
            place = free.pop(0) if free else len(self._places)
            self._places[place : place + 1] = [sequence]
            request = sequence.live.request
            added.append((place, request.params, list(request.prompt_token_ids), sequence.token_ids))
        size, holes = len(rows), set(free)
        sources = (place for place in range(size, len(self._places)) if place not in holes)
        for hole in free:
            if hole < size:
                source = next(sources)
                self._places[hole] = self._places[source]
                moved.append((source, hole, MoveDirectionality.UNIDIRECTIONAL))
        del self._places[size:]
        return BatchUpdate(batch_size=size, removed=free, added=added, moved=moved)


def _class_of(processor: object) -> Any:  # noqa: ANN401
    """A processor's class, also where its name is given."""
    found = processor
    if isinstance(processor, str):
        module, _, name = processor.partition(":")
        try:
            found = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"logits_processors: {processor!r:.80}: {error_line(error)}") from error
    if not isinstance(found, type) or not all(callable(getattr(found, name, None)) for name in _METHODS):
        raise ConfigError.of("logits_processors", got=processor, expected=_EXPECTED)
    return found


def _made(kind: Callable[..., Any], config: EngineConfig) -> Any:  # noqa: ANN401
    """A processor, made as vLLM makes it."""
    try:
        return kind(config, torch.device("cpu"), False)
    except Exception as error:
        name = getattr(kind, "__name__", str(kind))
        raise ConfigError(f"logits_processors: cannot make {name}: {error_line(error)}") from error
