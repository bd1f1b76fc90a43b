"""What a step costs: measured on this machine in about a second, or worked out for another device.

Measured on a model of the same widths with two layers and random numbers for weights, so nothing is loaded;
the figures are kept in the user's cache, by model, dtype, threads and machine.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treeshare.config import EngineConfig
from treeshare.engine.engine import MAX_STEP_ROWS, Engine
from treeshare.engine.sequence import Request
from treeshare.models import LoadedModel
from treeshare.models.loading import bind_model, cache_dir
from treeshare.native import kernels
from treeshare.sampling import SamplingParams

if TYPE_CHECKING:
    from pathlib import Path

    from treeshare.models.loading import ModelDescription

_LAYERS = 2
_PROMPT_TOKENS = 1024
_STEPS = 4
_ROWS = (1, 8, 64, 256)

_HOST_PARTS = frozenset({"lm_head", "layout", "sampling", "bookkeeping", "scheduling"})
"""Parts of a step that do not grow with the number of layers."""


class MeasuredCost(BaseModel):
    """Seconds by parts; see ``StepCost``.

    Attributes:
        num_layers: Of the whole model.
        rows: Numbers of decoding rows that were measured, ascending.
        layer_s: Per number of rows, a layer of a decoding step without attention.
        host_s: Per number of rows, what does not grow with layers: output layer, drawing, bookkeeping.
        prompt_token_s: A prompt token in a layer, without attention.
        prompt_step_s: A step of prompts, once.
        shared_pair_s: A row and a shared key, in a layer.
        page_s: A row and one of its private pages, in a layer.
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
        steps = -(-num_tokens // MAX_STEP_ROWS)
        layer_s = num_tokens * self.prompt_token_s + num_pairs * self.shared_pair_s
        return self.num_layers * layer_s + steps * self.prompt_step_s

    def decode_s(self, num_rows: int, shared_pairs: float, private_pairs: float) -> float:
        """See ``StepCost.decode_s``; beyond the rows measured the last two give the slope."""
        pages = private_pairs / self.page_size + num_rows / 2
        layer_s = _at(num_rows, self.rows, self.layer_s)
        layer_s += shared_pairs * self.shared_pair_s + pages * self.page_s
        return self.num_layers * layer_s + _at(num_rows, self.rows, self.host_s)


class DeviceCost(BaseModel):
    """A device by its data sheet: a step takes as long as its arithmetic or its memory, whichever is more.

    Attributes:
        flops: Operations per second that matmuls reach.
        memory_bytes_s: Bytes per second from memory.
        num_weights: Of the model, the embedding counted once.
        weight_bytes: Of one weight.
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
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(description.config)
        geometry = description.geometry
        return cls(
            flops=flops,
            memory_bytes_s=memory_bytes_s,
            num_weights=sum(one.numel() for one in model.parameters()),
            weight_bytes=geometry.dtype.itemsize,
            pair_flops=4 * geometry.num_layers * description.config.num_attention_heads * geometry.head_dim,
            token_kv_bytes=geometry.bytes_per_token,
        )


def step_cost_here(description: ModelDescription) -> MeasuredCost:
    """What steps of a model cost on this machine, from the cache or measured now."""
    path = _cache_path(description)
    try:
        return MeasuredCost.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        cost = measure_step_cost(description)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(cost.model_dump_json(), encoding="utf-8")
        partial.replace(path)
    except OSError:  # a cache that cannot be written: measured again next time
        pass
    return cost


def measure_step_cost(description: ModelDescription) -> MeasuredCost:
    """Time steps of a model with two layers of the same widths."""
    loaded = _shallow_model(description)
    config = EngineConfig(profile=True, max_num_seqs=max(_ROWS), lazy_divergence=False, fold=False)
    engine = Engine(loaded, config)
    prompt_tokens = min(_PROMPT_TOKENS, loaded.max_model_len - _STEPS - 2)
    layer_s, host_s = [], []
    for num_rows in (max(_ROWS), *_ROWS):  # the first time is the warm-up
        phases = _time_run(engine, num_rows, prompt_tokens)
        decode = {part: s / _STEPS for part, s in (phases["decode"] | phases["between"]).items()}
        host_s.append(sum(s for part, s in decode.items() if part in _HOST_PARTS))
        attention = {part: s / _LAYERS for part, s in decode.items() if part.startswith("attention: ")}
        rest = sum(s for part, s in phases["decode"].items() if part not in _HOST_PARTS) / _STEPS / _LAYERS
        shared, private = attention.get("attention: shared", 0.0), attention.get("attention: private", 0.0)
        layer_s.append(max(rest - shared - private, 0.0))
    prefill = phases["prefill"]
    attended = sum(s for part, s in prefill.items() if part == "attention: causal")
    own = sum(s for part, s in prefill.items() if part not in _HOST_PARTS and part != "attention: causal")
    return MeasuredCost(
        num_layers=description.geometry.num_layers,
        rows=list(_ROWS),
        layer_s=layer_s[1:],
        host_s=host_s[1:],
        prompt_token_s=own / prompt_tokens / _LAYERS,
        prompt_step_s=sum(s for part, s in prefill.items() if part in _HOST_PARTS)
        / -(-prompt_tokens // MAX_STEP_ROWS),
        shared_pair_s=max(shared / (max(_ROWS) * prompt_tokens), attended / prompt_tokens**2 / _LAYERS),
        page_s=private / max(_ROWS),
        page_size=config.page_size,
    )


def _time_run(engine: Engine, num_rows: int, prompt_tokens: int) -> dict[str, dict[str, float]]:
    """Seconds by phase and part of a run of ``num_rows`` completions."""
    vocab_size = engine.loaded.vocab_size
    params = SamplingParams(n=num_rows, temperature=1.0, max_tokens=_STEPS + 1, ignore_eos=True)
    request = Request(
        prompt_token_ids=[token % vocab_size for token in range(prompt_tokens)],
        params=params,
        problem_key=num_rows,
        seed=0,
        completion_indices=range(num_rows),
    )
    engine.stopwatch.restart()
    for _ in engine.run([request]):
        pass
    return engine.stopwatch.as_dict()


def _shallow_model(description: ModelDescription) -> LoadedModel:
    """A model of the same widths with few layers and random weights."""
    from transformers import AutoModelForCausalLM

    config: Any = copy.deepcopy(description.config)
    config.num_hidden_layers = _LAYERS
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:_LAYERS]
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(config, dtype=description.geometry.dtype)
    geometry, fused = bind_model(model)
    return LoadedModel(
        model=model,
        fused=tuple(fused),
        tokenizer=None,
        model_id="shallow",
        geometry=geometry,
        vocab_size=model.get_input_embeddings().weight.shape[0],
        eos_token_ids=frozenset(),
        max_model_len=config.max_position_embeddings,
        load_s=0.0,
    )


def _at(num_rows: int, rows: list[int], seconds: list[float]) -> float:
    """Interpolate; beyond the last number of rows, in proportion to it."""
    if num_rows > rows[-1]:
        return seconds[-1] * num_rows / rows[-1]
    return float(np.interp(num_rows, rows, seconds))


def _cache_path(description: ModelDescription) -> Path:
    known = {
        "config": description.config.to_dict(),
        "dtype": str(description.geometry.dtype),
        "threads": torch.get_num_threads(),
        "machine": [platform.machine(), platform.processor(), _cpu_name(), os.cpu_count()],
        "kernels": kernels() is not None,
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()
    return cache_dir() / "step_cost" / f"{digest[:24]}.json"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(
                (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), ""
            )
    except OSError:
        return ""
