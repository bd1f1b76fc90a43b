"""Benchmark workloads: prompts as token ids, a fixed number of new tokens, and the measurements of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from treeshare.devices import peak_resident_bytes
from treeshare.errors import DataError
from treeshare.files import read_packed, without_mark
from treeshare.sampling import SamplingParams
from treeshare.stopwatch import REST

if TYPE_CHECKING:
    from pathlib import Path

    from treeshare.engine.llm import LLM


class WorkloadProblem(BaseModel):
    """A prompt and how many completions it gets."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    prompt_ids: list[NonNegativeInt] = Field(min_length=1)
    samples: PositiveInt

    @field_validator("prompt_ids")
    @classmethod
    def _share_numbers(cls, ids: list[int], info: ValidationInfo) -> list[int]:
        """One object per number in the whole file: large workloads take a quarter of the memory."""
        known: dict[int, int] = {} if info.context is None else info.context
        return [known.setdefault(token, token) for token in ids]


class Workload(BaseModel):
    """The file format of ``treeshare bench``: any tree shape, as token ids."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    name: str = ""
    problems: list[WorkloadProblem] = Field(min_length=1)
    new_tokens: PositiveInt
    ignore_eos: bool = True
    temperature: float = 0.8
    top_p: float = 1.0

    @classmethod
    def read(cls, path: Path) -> Workload:
        """Read and check a workload file.

        Raises:
            DataError: If it is missing, not JSON or not a workload; the message says where.
        """
        content = without_mark(read_packed(path, "workload"), path, "workload")
        try:
            workload = cls.model_validate_json(content, context={})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(f"workload: {path}: {where}: {first['msg']}") from error
        return workload if workload.name else workload.model_copy(update={"name": path.stem})


def run_workload(llm: LLM, workload: Workload, *, use_tqdm: bool = False) -> dict[str, Any]:
    """Run a workload and return its figures.

    ``tok_s`` is generated tokens per second from submission to the last token, prefill included; model
    loading and a small warm-up are not in it. With ``profile``, ``profile_s`` has the seconds of each part.
    """
    num_tokens = min(300, llm.max_model_len - 8)
    if num_tokens > 0:
        warm_up = SamplingParams(n=8, temperature=0.8, max_tokens=8, ignore_eos=True)
        ids = [i % min(50, llm.vocab_size) for i in range(num_tokens)]
        llm.generate({"prompt_token_ids": ids}, warm_up, use_tqdm=False)
    params = [
        SamplingParams(
            n=problem.samples,
            temperature=workload.temperature,
            top_p=workload.top_p,
            max_tokens=workload.new_tokens,
            ignore_eos=workload.ignore_eos,
        )
        for problem in workload.problems
    ]
    prompts = [{"prompt_token_ids": problem.prompt_ids} for problem in workload.problems]
    llm.engine.stopwatch.restart()
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=use_tqdm)
    wall_s = time.perf_counter() - started
    llm.engine.stopwatch.lap(REST)
    tokens = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
    stats = llm.stats
    occupancy = stats.occupancy(llm.config.max_num_seqs)
    return {
        "workload": workload.name,
        "tokens": tokens,
        "wall_s": round(wall_s, 3),
        "tok_s": round(tokens / wall_s, 1),
        "prefill_s": round(stats.prefill_s, 3),
        "decode_s": round(stats.decode_s, 3),
        "sampling_s": round(stats.sampling_s, 3),
        "occupancy": occupancy if occupancy is None else round(occupancy, 3),
        "preemptions": stats.num_preemptions,
        "replayed_rows": stats.num_replayed,
        "median_step_s": round(stats.median_step_s, 4),
        "longest_step_s": round(stats.longest_step_s, 4),
        "longest_step_rows": stats.longest_step_rows,
        "peak_kv_mib": round(stats.peak_kv_bytes / 2**20, 1),
        "peak_kv_bytes": stats.peak_kv_bytes,
        "kv_budget_bytes": llm.kv_budget_bytes,
        "unique_tokens": stats.unique_tokens,
        "logical_tokens": stats.logical_tokens,
        "num_steps": stats.num_steps,
        "max_rss_mib": peak_resident_bytes() >> 20,
        "load_s": round(llm.loaded.load_s, 3),
        "sharing": llm.config.sharing,
        "attention": llm.config.attention,
        "dtype": llm.dtype,
        **({"profile_s": llm.engine.stopwatch.as_dict()} if llm.engine.stopwatch.enabled else {}),
    }
