"""From a step's layout to logits: model, attention, KV and matmul sizes in one object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treeshare.attention import make_backend
from treeshare.devices import default_kv_budget_bytes, upload
from treeshare.kv import KVStore
from treeshare.models import NoAttention, TreeStep, make_adapter
from treeshare.models.own_code import company_reason
from treeshare.models.support import require_support
from treeshare.sampling.softmax import log_softmax
from treeshare.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.attention import BatchLayout
    from treeshare.config import EngineConfig
    from treeshare.models import LoadedModel, StepAttention


MAX_LOGITS_BYTES = 128 << 20
"""Maximum bytes of a step's logits in float32 of which log-softmax is taken; it takes as much again."""


class ModelRunner:
    """Runs a model on packed rows; what the engine, scoring and search compute goes through ``forward``.

    Args:
        loaded: A loaded model.
        config: See ``EngineConfig``.
        poison: Unused KV is NaN (tests).

    Attributes:
        loaded: As given.
        kv_budget_bytes: Maximum bytes of KV held at once.
        stopwatch: Where the time went since it was restarted; off unless ``config.profile``.
        adapter: The model, bound to tree attention.
        backend: Computes attention.
        store: All KV; another one after ``reset``.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, *, poison: bool = False) -> None:
        self.loaded, self._config, self._poison = loaded, config, poison
        self.kv_budget_bytes = config.kv_budget_bytes or default_kv_budget_bytes(str(loaded.device))
        self.stopwatch = Stopwatch(enabled=config.profile)
        max_rows = config.max_num_seqs + config.prefill_chunk
        self.adapter = make_adapter(loaded, max_rows=max_rows, stopwatch=self.stopwatch)
        self.backend = make_backend(
            config.backend,
            loaded.geometry,
            self.stopwatch,
            device=loaded.device,
            level=loaded.level,
            in_codes=loaded.quantization is not None,
        )
        require_support(self.backend, loaded.calls, loaded.model.config.model_type)
        self.store = self._new_store()

    def reset(self) -> None:
        """Drop all KV, whatever state an interrupt left it in; its memory goes back to the system."""
        self.store.discard()
        self.store = self._new_store()

    def _new_store(self) -> KVStore:
        return KVStore(
            self.loaded.geometry,
            budget_bytes=self.kv_budget_bytes,
            page_size=self._config.page_size,
            poison=self._poison,
            device=self.loaded.device,
        )

    @property
    def company_reason(self) -> str | None:
        """Why a completion's bits may depend on what else runs; None where they do not."""
        if self.backend.keeps_bits:
            return company_reason(self.loaded.model)
        return f"attention {self.backend.name} rounds by where the tree is cut"

    @property
    def max_rows(self) -> int:
        """Maximum number of packed rows of a call."""
        return self.adapter.widths[-1]

    @property
    def max_logits_rows(self) -> int:
        """Maximum number of rows whose logits a call returns."""
        return self.adapter.head_widths[-1]

    # -- a call --

    def forward(self, layout: BatchLayout, tokens: NDArray[np.int64], logits_rows: Sequence[int]) -> Tensor:
        """Compute the packed rows of a step; their KV is stored.

        Args:
            layout: The place of each row, and what it attends to.
            tokens: ``[layout.num_rows]`` int64: the token of each row.
            logits_rows: Rows whose next-token logits are wanted.

        Returns:
            ``[len(logits_rows), vocab_size]`` logits in the model's dtype, on its device. The next call may
            overwrite them.
        """
        self.stopwatch.lap("layout")
        is_off = self._config.attention == "off"
        step: StepAttention = NoAttention()
        if not is_off:
            step = TreeStep(self.backend, layout, self.loaded.calls, self.stopwatch)
        try:
            return self.adapter.forward(tokens, layout.positions, step, logits_rows)
        finally:
            self.backend.end_step()

    # -- logits on the host --

    @staticmethod
    def to_host(values: Tensor) -> Tensor:
        """Logits, or what was computed from them, in the host's memory; waits for the device."""
        return values.cpu()

    def logprobs(self, logits: Tensor) -> NDArray[np.float32]:
        """``[R, vocab_size]`` natural log of the next token's probabilities, for ``logits`` of that shape."""
        logprobs: NDArray[np.float32] = self.to_host(log_softmax(logits)).numpy()
        return logprobs

    def token_logprobs(
        self, logits: Tensor, rows: NDArray[np.int64], token_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """How likely given tokens are; the whole rows stay on the device.

        Args:
            logits: ``[R, vocab_size]``.
            rows: ``[N]`` row of each token.
            token_ids: ``[N]``.

        Returns:
            ``[N]`` natural log of each token's probability, and whether it is the most likely of its row, the
            lowest id on a tie.
        """
        places, tokens = (upload(array, logits.device) for array in (rows, token_ids))
        logprobs = log_softmax(logits)[places, tokens]
        is_best = logits.argmax(-1)[places] == tokens
        return self.to_host(logprobs).numpy(), self.to_host(is_best).numpy()
