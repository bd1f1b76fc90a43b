"""What a model computes outside of its compiled layers, with the same bits on every CPU: level ``portable``.

That level is the user's wish for the process (``TREESHARE_KERNELS``), or comes with a model's int8 weights.

IEEE 754 fixes the result of an addition, multiplication, division, square root or conversion. It fixes
neither that of a sum, whose order is torch's and follows the width of a CPU's vectors, nor that of a cosine,
of which torch has several. So every operation of torch that a model needs is looked at: those that are fixed
are let through, a few are the library's own (``native/numbers.h``), and a model that needs another is refused
by its name.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from treeshare.attention import AttentionSpec, NativeAttention
from treeshare.errors import UnsupportedModelError
from treeshare.models.fusion.binding import decoder_layers, find_programs
from treeshare.models.fusion.graph import Unfusable
from treeshare.models.fusion.judge import NUM_ROWS, Call
from treeshare.models.fusion.layer import FusedLayer, Workspace
from treeshare.models.fusion.tables import StepTables
from treeshare.models.step import NoAttention, current_step, running
from treeshare.native import PORTABLE, functions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from treeshare.kv import KVGeometry


class Wish(NamedTuple):
    """Who asked for the same bits on every CPU, and what does without them, for messages."""

    name: str
    remedy: str


BY_LEVEL = Wish(f"TREESHARE_KERNELS={PORTABLE}", "take auto or another level")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MOVES = _words(
    "_reshape_alias _to_copy _unsafe_view alias arange cat clone copy detach diagonal embedding empty "
    "empty_like expand expand_as fill flip full full_like gather index index_select "
    "lift_fresh masked_fill narrow new_empty new_full new_ones new_zeros ones ones_like permute "
    "repeat repeat_interleave reshape roll select select_scatter slice slice_scatter split "
    "split_with_sizes squeeze stack t transpose triu tril unbind unfold unsqueeze view where zero "
    "zeros zeros_like "
)
"""Operations that only move numbers, or make whole ones, or convert them: that is rounded once."""

_ROUNDED_ONCE = _words(
    "abs add amax amin argmax clamp clamp_max clamp_min div eq floor ge gt isfinite isnan le lt max "
    "maximum min minimum mul ne neg reciprocal relu rsub sign sqrt sub trunc "
)
"""Operations whose result for each number IEEE 754 fixes."""


def _of_each(name: str) -> Callable[[Tensor], Tensor]:
    """One of the library's own functions of each number of a float32 tensor."""

    def compute(x: Tensor) -> Tensor:
        dense = x.contiguous()
        out = torch.empty_like(dense)
        getattr(functions(), f"treeshare_{name}")(dense.data_ptr(), out.data_ptr(), out.numel())
        return out

    return compute


def _power(base: float, exponents: Tensor) -> Tensor:
    """``base ** exponents`` for a base above 0."""
    dense, number = exponents.contiguous(), torch.tensor([base], dtype=torch.float64)
    out = torch.empty_like(dense)
    functions().treeshare_power(number.data_ptr(), dense.data_ptr(), out.data_ptr(), out.numel())  # type: ignore[union-attr]
    return out


_OWN: Mapping[Any, Callable[..., Tensor]] = {
    torch.ops.aten.cos.default: _of_each("cos"),
    torch.ops.aten.sin.default: _of_each("sin"),
    torch.ops.aten.pow.Scalar: _power,
}
"""Operations that are computed here, of float32."""


class FixedOperations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, torch computes only what has the same bits on every CPU.

    Args:
        owner: The model's kind, for messages.
        wish: Who asked for it.

    Raises:
        UnsupportedModelError: Inside, at another operation; the message names it.
    """

    def __init__(self, owner: str, wish: Wish = BY_LEVEL) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owner, self._wish = owner, wish

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        del types
        options = dict(kwargs or {})
        own = _OWN.get(func)
        if own is not None and not options and _dtypes(args) == {torch.float32}:
            return own(*args)
        name = func.overloadpacket.__name__.removesuffix("_")
        if not self._is_fixed(name, args, options):
            with self:
                parts = func.decompose(*args, **options)
            if parts is not NotImplemented:
                return parts
            reason = f"its forward needs torch's {name}, whose last bits differ from CPU to CPU"
            raise refusal(self._owner, reason, self._wish)
        return func(*args, **options)

    @staticmethod
    def _is_fixed(name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
        if name in ("add", "sub", "rsub") and options.get("alpha", 1) != 1:  # a product, and fused or not
            return False
        if name in ("mm", "bmm"):  # of one term: nothing is summed up
            return (
                all(isinstance(x, Tensor) and x.dtype == torch.float32 for x in args)
                and args[0].shape[-1] == 1
            )
        if name in _MOVES | _ROUNDED_ONCE:
            return True
        made = options.get("dtype")
        return not any(dtype.is_floating_point for dtype in _dtypes((args, made)))


def _dtypes(values: Any) -> set[torch.dtype]:  # noqa: ANN401
    """The dtypes among ``values``, and of the tensors there."""
    found = set()
    for value in tree_leaves(values):
        if isinstance(value, Tensor):
            found.add(value.dtype)
        elif isinstance(value, torch.dtype):
            found.add(value)
    return found


class _Fixed:
    """A module's forward, computed by ``FixedOperations``."""

    def __init__(self, module: nn.Module, owner: str, wish: Wish) -> None:
        self._forward, self._owner, self._wish = module.forward, owner, wish

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with FixedOperations(self._owner, self._wish):
            return self._forward(*args, **kwargs)


class _NormAsLayer(nn.Module):
    """A norm as if it were a decoder layer, so that it is traced, compiled and judged like one.

    Its attention is to give back its queries, as ``NoAttention`` does.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The norm of ``[1, T, width]``."""
        head = self.norm.forward(hidden_states)[0].unsqueeze(1)  # its hooks are called around this
        return current_step().attend(head, head, head, AttentionSpec(scale=1.0)).view(hidden_states.shape)


class _CompiledNorm:
    """The forward of a norm by the kernels; its input stays as it is."""

    def __init__(self, layer: FusedLayer) -> None:
        self._layer = layer

    def __call__(self, hidden_states: Tensor) -> Tensor:
        with running(NoAttention()):
            return self._layer(hidden_states.clone())


def refusal(owner: str, reason: str, wish: Wish = BY_LEVEL) -> UnsupportedModelError:
    """The error for a model that ``portable`` cannot promise the same bits."""
    return UnsupportedModelError(f"{owner}: {wish.name}: {reason}; {wish.remedy}")


@torch.inference_mode()
def fix_tables(model: Any, wish: Wish = BY_LEVEL) -> None:  # noqa: ANN401
    """Make a model's rotary tables anew by ``FixedOperations``, and compute them so from now on.

    Raises:
        UnsupportedModelError: If that needs another operation, or other tables than rotary ones were
            computed when the model was made.
    """
    owner = model.config.model_type
    for path, module in list(model.named_modules()):
        tables = _computed_tables(module)
        if "rotary" not in type(module).__name__.lower():
            if tables:
                reason = f"{type(module).__name__} computes {', '.join(tables)} when it is made"
                raise refusal(owner, reason, wish)
            continue
        try:
            with FixedOperations(owner, wish):
                fixed = type(module)(model.config)
        except TypeError as error:
            reason = f"{type(module).__name__} cannot be made anew ({error})"
            raise refusal(owner, reason, wish) from error
        again = _computed_tables(fixed)
        if {name: table.shape for name, table in again.items()} != {k: v.shape for k, v in tables.items()}:
            raise refusal(owner, f"{type(module).__name__} has other tables when it is made anew", wish)
        for name, table in tables.items():
            table.copy_(again[name])
        del path
        module.forward = _Fixed(module, owner, wish)


def _computed_tables(module: nn.Module) -> dict[str, Tensor]:
    """A module's own floating tables that are not read from its files; single numbers are left out."""
    saved = module.state_dict(keep_vars=True)
    return {
        name: buffer
        for name, buffer in module.named_buffers(recurse=False)
        if name not in saved and buffer.is_floating_point() and buffer.numel() > 1
    }


def fix_norms(model: Any) -> None:  # noqa: ANN401
    """Give norms outside of the decoder layers, such as the last, to the kernels that can compute them."""
    inside = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    width, dtype = model.get_input_embeddings().weight.shape[1], model.dtype
    for module in model.modules():
        if "norm" in type(module).__name__.lower() and id(module) not in inside:
            call = Call(_NormAsLayer(module), (torch.zeros(1, NUM_ROWS, width, dtype=dtype),), {})
            with contextlib.suppress(Unfusable):  # ``require_fixed`` names what the norm needs
                (program,) = find_programs([call], dtype, level=PORTABLE)
                layer = FusedLayer(program, dtype, Workspace(), StepTables(dtype), level=PORTABLE)
                module.forward = _CompiledNorm(layer)


@torch.inference_mode()
def require_fixed(
    model: Any,  # noqa: ANN401
    geometry: KVGeometry,
    unfused_reason: str | None,
    wish: Wish = BY_LEVEL,
) -> None:
    """Refuse a bound model unless all it computes has the same bits on every CPU.

    Raises:
        UnsupportedModelError: Naming the first operation that has not.
    """
    owner = model.config.model_type
    if not NativeAttention.can_read(geometry, PORTABLE):
        reason = f"the attention kernel takes keys of a multiple of 4 numbers, not of {geometry.widths[0]}"
        raise refusal(owner, reason, wish)
    if unfused_reason is not None:
        raise refusal(owner, f"its layers are not compiled ({unfused_reason})", wish)
    tokens = torch.arange(4).unsqueeze(0)
    with FixedOperations(owner, wish), running(NoAttention()):  # the kernel's bits are known
        model(
            input_ids=tokens,
            position_ids=tokens.clone(),
            use_cache=False,
            logits_to_keep=torch.tensor([3]),
        )
