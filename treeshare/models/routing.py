"""The choices of routers while a model is checked: two runs are compared with the same experts.

A router chooses the experts with the largest scores. Where two scores lie within a rounding of one another,
another attention or another order of a sum chooses another expert, and the row's output is another one:
that is no fault of what is checked. So the choices of the first run are noted, and a later run takes them
wherever its own scores say that they are as good but for rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""How far below a run's own choice its score of the noted one may lie, of the row's largest score."""


_CHOICES = frozenset({torch.topk, Tensor.topk, torch.max, Tensor.max})
"""Functions that choose, where they give values and indices."""


_MAX_DIMENSIONS = 3
"""Of a router's scores; attention's have heads, too, and only some attentions look for the largest."""


class Routing(TorchFunctionMode):
    """Inside, every choice of the ``k`` largest of a row, or the largest, is noted or taken from another run.

    Args:
        dtype: Of the model.
        noted: ``chosen`` of another run of the same rows; None: every choice is the run's own.

    Attributes:
        chosen: ``[T, k]`` of every choice, in their order.
    """

    def __init__(self, dtype: torch.dtype, noted: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self._tolerance, self._noted = _TOLERANCE[dtype], noted
        self.chosen: list[Tensor] = []

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        if func not in _CHOICES or isinstance(result, Tensor):
            return result
        scores = args[0] if args else (kwargs or {})["input"]
        if scores.dim() > _MAX_DIMENSIONS:
            return result
        if self._noted is not None and len(self.chosen) < len(self._noted):
            result = self._take(scores, result, self._noted[len(self.chosen)])
        indices: Tensor = result.indices
        is_one = indices.dim() < scores.dim()  # of one choice the dimension may be dropped
        self.chosen.append(indices.reshape(-1, 1 if is_one else indices.shape[-1]))
        return result

    def _take(self, scores: Tensor, own: Any, noted: Tensor) -> Any:  # noqa: ANN401
        """The noted choice in every row where it is as good as the row's own, but for rounding."""
        shape = own.indices.shape
        if noted.numel() != own.indices.numel() or scores.dim() != len(shape) or noted.shape[-1] != shape[-1]:
            return own
        noted = noted.view(own.indices.shape)
        values = scores.gather(-1, noted)
        size = scores.masked_fill(~scores.isfinite(), 0).abs().amax(-1)
        is_as_good = own.values.amin(-1) - values.amin(-1) <= self._tolerance * size
        is_as_good = is_as_good.unsqueeze(-1)
        return type(own)(
            (torch.where(is_as_good, values, own.values), torch.where(is_as_good, noted, own.indices))
        )


def joined(first: Sequence[Tensor], second: Sequence[Tensor], shared: int) -> list[Tensor]:
    """The choices of a row that holds a prompt, then another without the ``shared`` tokens that both have."""
    return [torch.cat([left, right[shared:]]) for left, right in zip(first, second, strict=True)]
