"""What the engine logs with the logger ``treeshare``: a loaded model, and a finished run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from treeshare.native import kernel_level

if TYPE_CHECKING:
    from treeshare.engine.runner import ModelRunner
    from treeshare.engine.stats import EngineStats
    from treeshare.models import LoadedModel

_LOG = logging.getLogger("treeshare.engine")


def log_loaded(loaded: LoadedModel, runner: ModelRunner, max_num_seqs: int) -> None:
    """Log at level INFO how a model that was loaded will be computed."""
    unfused = loaded.unfused_reason
    _LOG.info(
        "%s: %s%s on %s, loaded in %.1f s; kernels %s, attention %s, %s; KV budget %.0f MiB, "
        "at most %d completions at once, %d threads",
        loaded.model_id,
        str(loaded.dtype).removeprefix("torch."),
        f", {loaded.quantization} weights" if loaded.quantization else "",
        loaded.device,
        loaded.load_s,
        loaded.level or kernel_level(),
        runner.backend.name,
        f"layers not fused: {unfused}" if unfused else "fused layers",
        runner.kv_budget_bytes / 2**20,
        max_num_seqs,
        torch.get_num_threads(),
    )


def log_run(stats: EngineStats) -> None:
    """Log at level INFO what a run came to, also how often a sequence was preempted for want of KV."""
    _LOG.info(
        "%d of %d completions, %d tokens in %.1f s (%.0f tokens/s), %d prompt tokens computed of %d; "
        "peak KV %.1f MiB, %d preemptions",
        stats.num_finished,
        stats.num_completions,
        stats.num_tokens,
        stats.wall_s,
        stats.tokens_per_s,
        stats.prefilled_tokens,
        stats.logical_tokens,
        stats.peak_kv_bytes / 2**20,
        stats.num_preemptions,
    )
