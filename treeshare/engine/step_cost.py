"""What a step costs: measured on this machine in about a second, or derived for another device.

Measured on models of the same widths with few layers and random weights, so nothing is loaded; the figures
are kept in the user's cache, by model, dtype, threads and machine.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from treeshare.config import MAX_PREFILL_ROWS, EngineConfig
from treeshare.engine.engine import Engine
from treeshare.engine.machine import cached
from treeshare.engine.sequence import Request
from treeshare.models import LoadedModel
from treeshare.models.binding import bind_model
from treeshare.models.support import max_model_len
from treeshare.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from treeshare.models.loading import ModelDescription

_LAYERS = 5
_PROMPT_TOKENS = 256
_STEPS = 3
_FEW_PROMPT_TOKENS = 32
"""Prompt tokens of the runs with few rows, which measure neither prompts nor shared keys."""

_ROWS = (1, 16, 128)

_HOST_PARTS = frozenset({"lm_head", "layout", "sampling", "bookkeeping", "scheduling"})
"""Parts of a step that do not grow with the number of layers."""


class MeasuredCost(BaseModel):
    """Seconds of the parts of a step; see ``StepCost``.

    Attributes:
        num_layers: Layers of the whole model.
        rows: Numbers of decoding rows that were measured, ascending.
        layer_s: For each of ``rows``, seconds of a layer in a decoding step, without attention.
        host_s: For each of ``rows``, seconds apart from layers: output layer, drawing, bookkeeping.
        prompt_token_s: Seconds of a prompt token in a layer, without attention.
        prompt_step_s: Seconds of a step of prompts besides its layers.
        shared_pair_s: Seconds of attention of a row to a shared key, in a layer.
        page_s: Seconds of attention of a row to one of its private pages, in a layer.
        page_size: Tokens of a page.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    num_layers: int = Field(ge=1)
    rows: list[int]
    layer_s: list[float]
    host_s: list[float]
    prompt_token_s: float
    prompt_step_s: float
    shared_pair_s: float
    page_s: float
    page_size: int = Field(ge=1)

    def prefill_s(self, num_tokens: int, num_pairs: int) -> float:
        """See ``StepCost.prefill_s``."""
        steps = -(-num_tokens // MAX_PREFILL_ROWS)
        layer_s = num_tokens * self.prompt_token_s + num_pairs * self.shared_pair_s
        return self.num_layers * layer_s + steps * self.prompt_step_s

    def decode_s(self, num_rows: int, shared_pairs: float, private_pairs: float) -> float:
        """See ``StepCost.decode_s``; above the measured rows, extrapolated by the slope of the last two."""
        pages = private_pairs / self.page_size + num_rows / 2
        layer_s = _interpolated(num_rows, self.rows, self.layer_s)
        layer_s += shared_pairs * self.shared_pair_s + pages * self.page_s
        return self.num_layers * layer_s + _interpolated(num_rows, self.rows, self.host_s)


class DeviceCost(BaseModel):
    """A device by its data sheet: a step takes as long as the slower of its arithmetic and its memory reads.

    Attributes:
        flops: Operations per second that matmuls reach.
        memory_bytes_s: Bytes per second from memory.
        num_weights: Weights of the model, the embedding counted once.
        weight_bytes: Bytes of a weight.
        pair_flops: Operations of a row and a key, all layers and heads.
        token_kv_bytes: KV bytes of a token.
    """

    model_config = ConfigDict(frozen=True)
    flops: float = Field(gt=0)
    memory_bytes_s: float = Field(gt=0)
    num_weights: int
    weight_bytes: int
    pair_flops: int
    token_kv_bytes: int

    def prefill_s(self, num_tokens: int, num_pairs: int) -> float:
        """See ``StepCost.prefill_s``."""
        return (2 * self.num_weights * num_tokens + self.pair_flops * num_pairs) / self.flops

    def decode_s(self, num_rows: int, shared_pairs: float, private_pairs: float) -> float:
        """See ``StepCost.decode_s``; a shared key is read once for all rows, a private one for its row."""
        pairs = shared_pairs + private_pairs
        arithmetic_s = (2 * self.num_weights * num_rows + self.pair_flops * pairs) / self.flops
        keys_read = shared_pairs / max(num_rows, 1) + private_pairs
        read = self.num_weights * self.weight_bytes + keys_read * self.token_kv_bytes
        return max(arithmetic_s, read / self.memory_bytes_s)

    @classmethod
    def of_model(cls, description: ModelDescription, *, flops: float, memory_bytes_s: float) -> DeviceCost:
        """The cost of a model on a device, from its configuration."""
        with torch.device("meta"):
            model = description.part.model_class._from_config(description.config)
        geometry = description.geometry
        return cls(
            flops=flops,
            memory_bytes_s=memory_bytes_s,
            num_weights=sum(parameter.numel() for parameter in model.parameters()),
            weight_bytes=geometry.dtype.itemsize,
            pair_flops=2
            * description.config.num_attention_heads
            * sum(layer.key_width + layer.value_width for layer in geometry.layers),
            token_kv_bytes=geometry.bytes_per_token,
        )


def step_cost_here(description: ModelDescription) -> MeasuredCost:
    """What steps of a model cost on this machine, from the cache or measured now."""
    key = {"config": description.config.to_dict(), "dtype": str(description.geometry.dtype)}
    return cached("step_cost", key, TypeAdapter(MeasuredCost), lambda: measure_step_cost(description))


def measure_step_cost(description: ModelDescription) -> MeasuredCost:
    """Time steps of a model with several layers and with one; the difference gives a layer's seconds."""
    deep, flat = (_measure(loaded) for loaded in _shallow_models(description))
    layer_s = (deep.body_s - flat.body_s) / (_LAYERS - 1)
    prompt_layer_s = (deep.prompt_body_s - flat.prompt_body_s) / (_LAYERS - 1)
    prompt_steps = -(-deep.prompt_tokens // MAX_PREFILL_ROWS)
    return MeasuredCost(
        num_layers=description.geometry.num_layers,
        rows=list(_ROWS),
        layer_s=np.maximum(layer_s, 0).tolist(),
        host_s=np.maximum(flat.host_s + flat.body_s - layer_s, 0).tolist(),
        prompt_token_s=max(prompt_layer_s, 0.0) / deep.prompt_tokens,
        prompt_step_s=max(flat.prompt_host_s + flat.prompt_body_s - prompt_layer_s, 0.0) / prompt_steps,
        shared_pair_s=deep.shared_s / (max(_ROWS) * deep.prompt_tokens * _LAYERS),
        page_s=deep.private_s / (max(_ROWS) * _LAYERS),
        page_size=EngineConfig().page_size,
    )


@dataclass(frozen=True, kw_only=True)
class _Timing:
    """Seconds of a shallow model's steps: per number of rows ``[len(_ROWS)]``, or of all prompts."""

    body_s: NDArray[np.float64]
    host_s: NDArray[np.float64]
    shared_s: float
    private_s: float
    prompt_body_s: float
    prompt_host_s: float
    prompt_tokens: int


def _measure(loaded: LoadedModel) -> _Timing:
    """Time a shallow model's steps for each of ``_ROWS``; the largest run gives prompts and attention."""
    config = EngineConfig(profile=True, max_num_seqs=max(_ROWS), lazy_divergence=False, fold=False)
    engine = Engine(loaded, config)
    prompt_tokens = min(_PROMPT_TOKENS, loaded.max_model_len - _STEPS - 3)
    body_s, host_s = [], []
    for num_rows in (8, *_ROWS):  # the first time is the warm-up
        length = prompt_tokens if num_rows == max(_ROWS) else _FEW_PROMPT_TOKENS
        phases = _time_run(engine, num_rows, min(length, prompt_tokens))
        decode = {part: s / _STEPS for part, s in phases["decode"].items()}
        between = {part: s / _STEPS for part, s in phases["between"].items()}
        attention = [decode.get(f"attention: {kind}", 0.0) for kind in ("shared", "private")]
        host = sum(s for part, s in decode.items() if part in _HOST_PARTS)
        body_s.append(sum(decode.values()) - sum(attention) - host)
        host_s.append(host + sum(s for part, s in between.items() if part in _HOST_PARTS))
    prompt_host_s = sum(s for part, s in phases["prefill"].items() if part in _HOST_PARTS)
    return _Timing(
        body_s=np.array(body_s[1:]),
        host_s=np.array(host_s[1:]),
        shared_s=attention[0],
        private_s=attention[1],
        prompt_body_s=sum(phases["prefill"].values()) - prompt_host_s,
        prompt_host_s=prompt_host_s,
        prompt_tokens=prompt_tokens,
    )


def _time_run(engine: Engine, num_rows: int, prompt_tokens: int) -> dict[str, dict[str, float]]:
    """Seconds by phase and part of a run of ``num_rows`` completions, its first decoding step left out."""
    vocab_size = engine.loaded.vocab_size
    params = SamplingParams(n=num_rows, temperature=1.0, max_tokens=_STEPS + 2, ignore_eos=True)
    request = Request(
        prompt_token_ids=[token % vocab_size for token in range(prompt_tokens)],
        params=params,
        problem_key=num_rows,
        seed=0,
        completion_indices=range(num_rows),
    )
    engine.stopwatch.restart()
    prefill: dict[str, float] = {}
    for _ in engine.run_steps([request]):
        if engine.stats.num_steps == 1:  # memory is touched for the first time
            prefill = engine.stopwatch.as_dict()["prefill"]
            engine.stopwatch.restart()
    return engine.stopwatch.as_dict() | {"prefill": prefill}


def _shallow_models(description: ModelDescription) -> Iterator[LoadedModel]:
    """A model of the same widths with random weights: with several layers, then with the first one only."""
    from transformers.initialization import no_init_weights

    config: Any = copy.deepcopy(description.config)
    config.num_hidden_layers = _LAYERS
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:_LAYERS]
    numbers = np.random.default_rng(0).uniform(-0.05, 0.05, 4099).astype(np.float32)
    with no_init_weights(), torch.no_grad():
        model = description.part.model_class._from_config(config, dtype=description.geometry.dtype)
        for weight in model.parameters():  # few random numbers, repeated: drawing all would take longer
            repeated = torch.from_numpy(numbers).to(weight.dtype).repeat(-(-weight.numel() // len(numbers)))
            weight.copy_(repeated[: weight.numel()].view(weight.shape))
    bound = bind_model(model)
    deep = LoadedModel(
        model=model,
        fused=bound.fused,
        unfused_reason=bound.unfused_reason,
        tokenizer=None,
        model_id="shallow",
        geometry=bound.geometry,
        calls=bound.calls,
        vocab_size=model.get_input_embeddings().weight.shape[0],
        eos_token_ids=frozenset(),
        max_model_len=max_model_len(config),
        load_s=0.0,
    )
    yield deep
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.ModuleList) and len(child) == _LAYERS:
                setattr(module, name, child[:1])
    model.config.num_hidden_layers = 1
    flat = replace(bound.geometry, layers=bound.geometry.layers[:1])
    yield replace(deep, fused=deep.fused[:1], geometry=flat, calls=deep.calls[:1])


def _interpolated(num_rows: int, rows: list[int], seconds: list[float]) -> float:
    """Seconds at ``num_rows``, interpolated; above the last of ``rows``, by the slope of the last two."""
    if num_rows > rows[-1]:
        slope = (seconds[-1] - seconds[-2]) / (rows[-1] - rows[-2])
        return seconds[-1] + max(slope, 0.0) * (num_rows - rows[-1])
    return float(np.interp(num_rows, rows, seconds))
