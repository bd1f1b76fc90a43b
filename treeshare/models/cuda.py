"""The adapter on a CUDA device: a step's inputs are one copy, and steps that only decode replay a CUDA graph.

A graph holds the launches of one forward pass over fixed addresses. Steps whose rows are padded to the same
widths, and whose tables of work items to the same sizes, replay one graph after their inputs have been copied
to where it reads them. Prompts change the work of a step too much: they run launch by launch.

Written without a GPU: ``tests/engine/test_cuda_engine.py`` walks the engine over tensors that only say they
lie on a device; in place of a graph it replays the calls that a recorder noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from treeshare.attention import TritonAttention
from treeshare.devices import upload
from treeshare.models.adapter import ModelAdapter
from treeshare.models.linear import SMALL_OPERATIONS
from treeshare.models.step import TreeStep, running
from treeshare.models.widths import smallest_width
from treeshare.stopwatch import OFF, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.attention.triton.tables import FixedPlan, KernelTables
    from treeshare.models.loaded import LoadedModel
    from treeshare.models.step import StepAttention

MAX_GRAPHS = 64
"""Graphs held at once; when there are more, all are dropped. A graph takes some megabytes of the device."""


def make_adapter(loaded: LoadedModel, *, max_rows: int, stopwatch: Stopwatch = OFF) -> ModelAdapter:
    """The adapter for the device that the model lies on; the arguments are ``ModelAdapter``'s."""
    if loaded.device.type == "cuda":
        return CudaAdapter(loaded, max_rows=max_rows, stopwatch=stopwatch)
    return ModelAdapter(loaded.model, loaded.fused, max_rows=max_rows, stopwatch=stopwatch)


@dataclass(frozen=True, slots=True)
class _Graph:
    """A captured forward pass.

    Attributes:
        graph: The graph to replay.
        inputs: Where it reads tokens, positions and the rows of logits.
        logits: Where it writes ``[H, vocab_size]`` logits; any other replay may overwrite them.
    """

    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    logits: Tensor


class CudaAdapter(ModelAdapter):
    """A model on a CUDA device bound to the Triton backend.

    Args:
        loaded: The model.
        max_rows: Rows that a forward pass should be able to have.
        stopwatch: Is told how long each part took; while it is on, no graphs are used.
    """

    def __init__(self, loaded: LoadedModel, *, max_rows: int, stopwatch: Stopwatch = OFF) -> None:
        super().__init__(loaded.model, max_rows=max_rows, stopwatch=stopwatch)
        self._device = loaded.device
        self._graphs: dict[Any, _Graph] = {}
        self._plans: dict[FixedPlan, KernelTables] = {}
        self._memory: Any = None

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Sequence[int] | NDArray[np.int64],
        positions: Tensor,
        step: StepAttention,
        logits_rows: Sequence[int],
    ) -> Tensor:
        """See ``ModelAdapter.forward``; waits for the device, so that callers measure the whole step.

        The logits of a step without prompts are overwritten by the next step.
        """
        width = smallest_width(self.widths, len(token_ids))
        inputs = np.zeros(2 * width + smallest_width(self.head_widths, len(logits_rows)), np.int64)
        inputs[: len(token_ids)] = token_ids
        inputs[width : width + len(token_ids)] = positions.numpy()
        inputs[2 * width : 2 * width + len(logits_rows)] = logits_rows
        if self._stopwatch.enabled or _has_prompts(step):
            logits = self._run(upload(inputs, self._device), width, step)
            self._stopwatch.lap(SMALL_OPERATIONS)
        else:
            logits = self._replay(inputs, width, step)
        torch.cuda.current_stream(self._device).synchronize()
        return logits[: len(logits_rows)]

    def _run(self, inputs: Tensor, width: int, step: StepAttention) -> Tensor:
        """Launch a forward pass, without waiting."""
        with running(step):
            output = self.model(
                input_ids=inputs[None, :width],
                position_ids=inputs[None, width : 2 * width],
                use_cache=False,
                logits_to_keep=inputs[2 * width :],
            )
        logits: Tensor = output.logits[0]
        return logits

    def _replay(self, inputs: NDArray[np.int64], width: int, step: StepAttention) -> Tensor:
        """Replay the graph of a step of this size; the first such step captures it."""
        plans: tuple[FixedPlan, ...] = ()
        if isinstance(step, TreeStep):
            assert isinstance(step.backend, TritonAttention), "no other backend serves a CUDA device"
            calls = [(call.layer, call.spec, call.num_heads) for call in step.calls]
            plans = step.backend.fill_fixed(step.layout, width, calls, self._plans)
        key = width, len(inputs), plans
        if key not in self._graphs:
            if len(self._graphs) >= MAX_GRAPHS:
                self._graphs, self._memory = {}, None
                self._plans = {fixed: self._plans[fixed] for fixed in plans}
            self._graphs[key] = self._capture(inputs, width, step)
        found = self._graphs[key]
        upload(inputs, self._device, out=found.inputs)
        found.graph.replay()
        return found.logits

    def _capture(self, inputs: NDArray[np.int64], width: int, step: StepAttention) -> _Graph:
        """Run the step once, which compiles kernels and chooses those of matmuls, then capture it.

        The step is run twice: both times the same keys and values go to the same places.
        """
        fixed, stream = upload(inputs, self._device), torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._run(fixed, width, step)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, stream=stream):
            logits = self._run(fixed, width, step)
        self._memory = graph.pool()  # of all graphs: only one is replayed at a time
        return _Graph(graph, fixed, logits)


def _has_prompts(step: StepAttention) -> bool:
    return isinstance(step, TreeStep) and bool(step.layout.causal)
