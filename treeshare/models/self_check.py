"""Compares treeshare's attention inside a model with the model's own, when it is loaded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from treeshare.attention import CpuAttention, PrefillChunk, build_layout
from treeshare.errors import UnsupportedModelError
from treeshare.kv import KVStore
from treeshare.models.adapter import ATTENTION_NAME
from treeshare.models.folder import integers
from treeshare.models.quantization import weights_in_codes
from treeshare.models.routing import Routing, joined
from treeshare.models.step import TreeStep, running
from treeshare.models.support import max_model_len
from treeshare.models.tensor_names import shortened
from treeshare.models.written_out import set_attention

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Sequence

    from torch import Tensor

    from treeshare.attention import BatchLayout
    from treeshare.kv import KVGeometry
    from treeshare.models.step import AttentionCall

_RELATIVE_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest logit difference in the self-check, relative to the largest logit."""

_MOST_ROWS = {torch.float32: 1.0, torch.bfloat16: 0.75}
"""Share of the tree's rows whose difference counts; what is wrong of a tree is wrong in each child's rows."""

_CODE_ERROR = 0.1
"""The same with int8 weights: where a number lies between two codes, a rounding decides, and the difference
grows from layer to layer."""

_PARTS = (9, 4, 5)
"""Tokens of the tree that every model is checked with: a root and two children."""

_TAILS = (6, 7)
"""Tokens of the children of a longer tree."""

_LONGEST = 256
"""Longest root of a tree that a number of the configuration asks for: to check costs as much as a prompt."""

_LENGTHS = re.compile(r"window|chunk|floor|position|seq_len|max_len|context|block_size|span")
"""Fields that may hold a number of tokens from which on a model computes something else."""


class SelfCheck:
    """Compares a small branching tree with the model's own attention, one prompt at a time.

    Catches what no configuration field says: layers that mix the tokens of a row, a mask of the model's own,
    positions that are ignored, a fused layer that computes something else.

    Args:
        model: Unfused, attention set to treeshare's.
        geometry: Its KV.
        calls: Its calls of attention.
        parts: Tokens of the root and of its two children.

    Attributes:
        has_codes: Whether the model has int8 weights.
        dtype: Of its KV.
        limit: Largest difference of a logit that is still rounding, relative to the largest logit.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: Any,  # noqa: ANN401
        geometry: KVGeometry,
        calls: Sequence[AttentionCall],
        parts: Sequence[int] = _PARTS,
    ) -> None:
        self._model, self._geometry, self._calls = model, geometry, calls
        vocab_size = model.get_output_embeddings().weight.shape[0]
        draws = torch.Generator().manual_seed(0)
        self.has_codes, self.dtype = bool(weights_in_codes(model)), geometry.dtype
        self.limit = _CODE_ERROR if self.has_codes else _RELATIVE_ERROR[geometry.dtype]
        self._parts = [torch.randint(vocab_size, (n,), generator=draws).tolist() for n in parts]
        self._choices: list[list[Tensor]] = []  # routers' of both prompts, by the reference
        self._expected = self._own_logits("eager")

    def _own_logits(self, implementation: str) -> Tensor:
        """Logits of the tree's tokens by an attention of transformers; treeshare's is set again."""
        shared, *tails = self._parts
        set_attention(self._model, implementation)
        own, choices = [], []
        for number, tail in enumerate(tails):
            with (
                plain_sdpa(),
                Routing(self.dtype, self._choices[number] if self._choices else None) as routing,
            ):
                own.append(self._model(input_ids=torch.tensor([shared + tail]), use_cache=False).logits[0])
            choices.append(routing.chosen)
        self._choices = self._choices or choices
        set_attention(self._model, ATTENTION_NAME)
        return torch.cat([own[0], own[1][len(shared) :]]).float()

    def _difference(self, logits: Tensor) -> float:
        """The largest difference of a logit, relative to the largest; of a mixture in bfloat16, of most rows.

        There a router's choice between experts may turn by a rounding, which changes a row or two.
        """
        rows = (logits.float() - self._expected).abs().amax(-1) / self._expected.abs().max()
        has_routers = any(self._choices)
        return float(rows.quantile(_MOST_ROWS[self.dtype] if has_routers else 1.0))

    @torch.inference_mode()
    def error(self) -> float:
        """Largest difference of a logit, relative to the largest logit."""
        layout = branching_layout(self._geometry, *map(len, self._parts))
        choices = joined(self._choices[0], self._choices[1], len(self._parts[0]))
        with running(TreeStep(CpuAttention(), layout, self._calls)), Routing(self.dtype, choices):
            got = self._model(
                input_ids=torch.tensor([[token for part in self._parts for token in part]]),
                position_ids=layout.positions.unsqueeze(0),
                use_cache=False,
            ).logits[0]
        return self._difference(got)

    @torch.inference_mode()
    def check(self) -> float:
        """Return ``error()``, if it is small enough to be rounding.

        The attention that transformers' users get must agree with its slowest, too, which is the reference.

        Raises:
            UnsupportedModelError: If a difference is larger, or logits are no numbers.
        """
        if not self._expected.isfinite().all():
            names = [key for key, weight in self._model.named_parameters() if not weight.isfinite().all()]
            where = f"; weights that are not finite: {shortened(names)}" if names else ""
            raise UnsupportedModelError(f"{self._kind}: its logits are not finite{where}")
        limit, error = self.limit, self.error()
        if not error <= limit:
            raise UnsupportedModelError(
                f"{self._kind}: its own attention is not plain causal attention "
                f"(logits differ by {error:.2g} of the largest); this model is not supported"
            )
        if getattr(self._model, "_supports_sdpa", False):
            usual = self._difference(self._own_logits("sdpa"))
            if not usual <= limit:
                raise UnsupportedModelError(
                    f"{self._kind}: transformers' attentions eager and sdpa differ "
                    f"(by {usual:.2g} of the largest logit); this model is not supported"
                )
        return error

    @property
    def _kind(self) -> str:
        kind: str = self._model.config.model_type
        return kind


def check_lengths(model: Any, geometry: KVGeometry, calls: Sequence[AttentionCall]) -> None:  # noqa: ANN401
    """Compare trees that are longer than each small number of tokens in the configuration.

    A model may compute something else from such a length on; what a prompt of ``_LONGEST`` tokens does not
    reach is to be refused by name (``support.py``).

    Raises:
        UnsupportedModelError: As ``SelfCheck.check``.
    """
    longest = max_model_len(model.config) - max(_TAILS)
    for length in sorted({number for _, number in integers(model.config.to_dict(), _LENGTHS)}):
        # Each child has positions on both sides; in the row, the second has none.
        root = length - min(_TAILS) // 2
        if 0 < root <= min(longest, _LONGEST):
            SelfCheck(model, geometry, calls, (root, *_TAILS)).check()


def plain_sdpa() -> contextlib.AbstractContextManager[None]:
    """Inside, torch takes the plain code of sdpa: the fast ones need instructions that not every CPU has."""
    return sdpa_kernel(SDPBackend.MATH)


def branching_layout(geometry: KVGeometry, shared: int, left: int, right: int) -> BatchLayout:
    """A step that computes a root of ``shared`` tokens and two children, of ``left`` and ``right`` tokens."""
    store = KVStore(geometry, budget_bytes=1 << 40, page_size=16, max_pages=0)
    root = store.segments.new(start=0, num_tokens=shared, order=0, parent=None)
    segments = [root] + [
        store.segments.new(start=shared, num_tokens=length, order=order, parent=root)
        for order, length in ((1, left), (2, right))
    ]
    return build_layout(store, [PrefillChunk(segment, 0, segment.num_tokens) for segment in segments], [])
