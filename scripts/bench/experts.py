"""A mixture of experts by the kernels, by transformers' own experts in the same engine, and a dense model.

    python scripts/bench/experts.py --dtype bfloat16

A random Qwen3-MoE of about 300M parameters decodes 256 rows behind a short prompt. Its experts are computed
by the compiled kernels or by one of transformers' implementations; all else is the same, so a ratio is that
of whole engines. The dense model is a Qwen3 whose gated layer is as wide as the experts of one token. All
take turns in one process; times are CPU seconds of ``--threads`` threads and seconds on the wall, minimum
and median of ``--rounds``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
import transformers
from families import Forest
from measuring import machine

from treeshare.config import EngineConfig
from treeshare.engine.engine import Engine
from treeshare.models import LoadedModel
from treeshare.models.binding import bind_model
from treeshare.models.experts import ExpertsForward
from treeshare.models.support import max_model_len
from treeshare.native import kernel_level

if TYPE_CHECKING:
    from collections.abc import Sequence

OURS = "kernels"
DENSE = "dense"

_ACTIVE, _WIDTH = 4, 512
_SIZES = {
    "vocab_size": 4096,
    "hidden_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 1024,
}


def make_engine(config: Any, dtype: torch.dtype) -> tuple[Engine, Any]:  # noqa: ANN401
    """An engine of a random model, and the model."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    bound = bind_model(model)
    if bound.unfused_reason is not None:
        raise SystemExit(f"{config.model_type} is not fused: {bound.unfused_reason}")
    loaded = LoadedModel(
        model=model,
        fused=bound.fused,
        unfused_reason=None,
        tokenizer=None,
        model_id=config.model_type,
        geometry=bound.geometry,
        calls=bound.calls,
        vocab_size=config.vocab_size,
        eos_token_ids=frozenset(),
        max_model_len=max_model_len(config),
        load_s=0.0,
    )
    engine_config = EngineConfig(kv_budget_bytes=1 << 30, max_num_seqs=256, lazy_divergence=False)
    return Engine(loaded, engine_config), model


class Variants:
    """The engines, and which code computes the experts."""

    def __init__(self, dtype: torch.dtype) -> None:
        mixture = transformers.Qwen3MoeConfig(
            **_SIZES,
            num_experts=32,
            num_experts_per_tok=_ACTIVE,
            moe_intermediate_size=_WIDTH,
            norm_topk_prob=True,
        )
        dense = transformers.Qwen3Config(**_SIZES, intermediate_size=_ACTIVE * _WIDTH)
        self._engine, self.model = make_engine(mixture, dtype)
        self._dense, _ = make_engine(dense, dtype)
        forwards = [(module, vars(module).get("forward")) for module in self.model.modules()]
        self._experts = [(module, own) for module, own in forwards if isinstance(own, ExpertsForward)]

    def seconds(self, name: str, forest: Forest) -> tuple[float, float]:
        """CPU seconds and seconds of one run."""
        for module, forward in self._experts:
            vars(module).pop("forward", None)
            if name == OURS:
                module.forward = forward
            elif name != DENSE:
                module.config._experts_implementation = name
        engine = self._dense if name == DENSE else self._engine
        started, cpu_started = time.perf_counter(), time.process_time()
        for _ in engine.run_steps(forest.requests(_SIZES["vocab_size"])):
            pass
        seconds = time.process_time() - cpu_started, time.perf_counter() - started
        engine.clear()
        return seconds


def measure(dtype: torch.dtype, names: Sequence[str], rounds: int, new_tokens: int) -> dict[str, Any]:
    """All by turns; ``times`` is how many times the tokens per second of a variant the kernels' are."""
    variants = Variants(dtype)
    forest = Forest(preamble=16, own=16, problems=1, samples=256, new_tokens=new_tokens)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name, found in taken.items():
            found.append(variants.seconds(name, forest))
    result: dict[str, Any] = {"parameters": sum(weight.numel() for weight in variants.model.parameters())}
    for place, clock in enumerate(("cpu", "wall")):
        for name, found in taken.items():
            seconds = [each[place] for each in found[1:]]  # the first warms up
            ours = [each[place] for each in taken[OURS][1:]]
            ratios = [other / own for other, own in zip(seconds, ours, strict=True)]
            result[f"{name} ({clock})"] = {
                "min_s": round(min(seconds), 3),
                "median_s": round(statistics.median(seconds), 3),
                "tok_s": round(256 * new_tokens / min(seconds)),
                "times": round(min(seconds) / min(ours), 2),
                "median_times": round(statistics.median(ratios), 2),
            }
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument(
        "--others", nargs="+", default=["grouped_mm", "eager"], help="batched_mm takes minutes"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    load = os.getloadavg()
    found = measure(getattr(torch, args.dtype), [OURS, *args.others, DENSE], args.rounds, args.new_tokens)
    about = {
        "cpu": machine().get("cpu"),
        "level": kernel_level(),
        "dtype": args.dtype,
        "threads": args.threads,
    }
    print(
        json.dumps(
            {**about, "load": [round(each, 1) for each in (*load, *os.getloadavg())], **found}, indent=1
        )
    )


if __name__ == "__main__":
    main()
