"""Where a model's weights are, each by its name: to be changed in place, and put back if that goes wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from transformers.pytorch_utils import Conv1D

from treeshare.models.quantization.modules import QuantizedLinear, weights_in_codes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from treeshare.models.quantization.weights import Int8Weights


class WeightMemory(Protocol):
    """The memory of one weight."""

    def copied(self) -> Any:  # noqa: ANN401
        """What is in it, for ``put_back``."""

    def change(self, value: Tensor) -> None:
        """Put a value there; raises what torch raises, and leaves memory half changed then."""

    def put_back(self, copied: Any) -> None:  # noqa: ANN401
        """Undo changes since ``copied``."""


class _Floats:
    """A weight as it is, and its float32 copy, as int8 linear layers have one of their bias."""

    def __init__(self, tensor: Tensor, twin: Tensor | None) -> None:
        self._tensor, self._twin = tensor, twin

    def copied(self) -> Tensor:
        return self._tensor.clone()

    def change(self, value: Tensor) -> None:
        self._tensor.copy_(value)
        if self._twin is not None:
            self._twin.copy_(self._tensor)

    def put_back(self, copied: Tensor) -> None:
        self.change(copied)


class _Codes:
    """A weight in codes; ``stand_in`` has its dtype."""

    def __init__(self, weights: Int8Weights, stand_in: Tensor, *, is_transposed: bool) -> None:
        self._weights, self._stand_in, self._is_transposed = weights, stand_in, is_transposed

    def copied(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self._weights.tensors.values()]

    def change(self, value: Tensor) -> None:
        rounded = value.detach().cpu().to(self._stand_in.dtype)
        if not bool(rounded.isfinite().all()):
            raise ValueError("its numbers are not finite, so they cannot be quantised")
        self._weights.fill(rounded.t() if self._is_transposed else rounded)

    def put_back(self, copied: list[Tensor]) -> None:
        for tensor, before in zip(self._weights.tensors.values(), copied, strict=True):
            tensor.copy_(before)


def weights_memory(model: nn.Module, held: Mapping[str, Tensor]) -> dict[str, WeightMemory]:
    """The memory of each of a model's weights.

    Args:
        model: The model.
        held: Its state dict.
    """
    codes = weights_in_codes(model)
    biases: dict[str, Tensor] = {}
    transposed = set()
    for name, module in model.named_modules():
        forward = vars(module).get("forward")
        if isinstance(forward, QuantizedLinear) and forward.weights.packed.bias is not None:
            biases[f"{name}.bias"] = forward.weights.packed.bias
        if isinstance(module, Conv1D):
            transposed.add(f"{name}.weight")
    return {
        name: _Codes(codes[name], tensor, is_transposed=name in transposed)
        if name in codes
        else _Floats(tensor, biases.get(name))
        for name, tensor in held.items()
    }
