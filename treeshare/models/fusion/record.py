"""Which operations a layer asks for, of which tensors and numbers: all that a trace of it is made of.

Following a layer's numbers (``trace.py``) takes several times as long as running it. A model's layers are
mostly alike, and a record, which only runs it, says which are: layers with equal records have equal traces,
but for their weights. Nothing is inferred from a layer's class or attributes.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from treeshare.models.fusion.graph import Attend
from treeshare.models.fusion.trace import after_block, attended

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from treeshare.attention import AttentionSpec
    from treeshare.models.fusion.blocks import Block
    from treeshare.models.fusion.graph import Path


class Record(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations of one run of a layer; also the step whose attention it meets.

    Args:
        layer: The layer.
        hidden: ``[1, T, width]``, its input.
        arguments: Its other tensors, by where its forward gets them.

    Attributes:
        attends: Its calls of attention.
    """

    def __init__(self, layer: nn.Module, hidden: Tensor, arguments: Mapping[Path, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attends: list[Attend] = []
        self._names: dict[int, object] = {}
        self._kept: list[Tensor] = []  # so that no other tensor gets its identity
        self._notes: list[object] = []
        weights = itertools.chain(layer.named_parameters(), layer.named_buffers())
        for name, tensor in itertools.chain(weights, arguments.items(), [("hidden states", hidden)]):
            self._notes.append(self._name(tensor, name))

    def key(self, output: object) -> tuple[object, ...]:
        """What equals another layer's if their traces do; ``output`` is the layer's."""
        return (*self._notes, self._frozen(output))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec, sinks: Tensor | None = None
    ) -> Tensor:
        """See ``StepAttention``; the result is that of a trace."""
        heads, widths = zip(*(tensor.shape[1:] for tensor in (query, key, value)), strict=True)
        self.attends.append(Attend(spec, heads, widths, sinks))
        with _disable_current_modes():
            out = attended(query, value)
        self._note("attend", (query, key, value, spec, sinks), {}, out)
        return out

    def call(self, block: Block, hidden: Tensor) -> Tensor:
        """A call of a block; the result is that of a trace."""
        with _disable_current_modes():
            out = after_block(hidden)
        self._note("block", (block, hidden), {}, out)
        return out

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run an operation and note it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._note(func, args, kwargs, out)
        return out

    def _note(self, func: object, args: Any, kwargs: Any, out: Any) -> None:  # noqa: ANN401
        given = self._frozen(args), self._frozen(kwargs)
        parts = out if isinstance(out, (tuple, list)) else [out]
        made = tuple(
            self._name(part, (len(self._notes), place)) if isinstance(part, torch.Tensor) else part
            for place, part in enumerate(parts)
        )
        self._notes.append((func, given, type(out), made))

    def _name(self, tensor: Tensor, name: object) -> object:
        """What a tensor is called, from its first appearance on, and what it is."""
        if id(tensor) not in self._names:
            self._names[id(tensor)] = name
            self._kept.append(tensor)
        return self._names[id(tensor)], tensor.shape, tensor.stride(), tensor.dtype

    def _frozen(self, part: Any) -> object:  # noqa: ANN401
        """Tensors as their names, lists as tuples. A tensor from elsewhere is like no other."""
        if isinstance(part, torch.Tensor):
            if id(part) not in self._names:
                self._kept.append(part)
            return self._names.setdefault(id(part), ("foreign", id(part)))
        if isinstance(part, (tuple, list)) and not hasattr(part, "_fields"):
            return type(part), tuple(map(self._frozen, part))
        if isinstance(part, dict):
            return tuple((name, self._frozen(value)) for name, value in sorted(part.items()))
        return type(part), part
