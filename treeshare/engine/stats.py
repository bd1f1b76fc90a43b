"""What a run measured of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Counters and clocks of one run; every figure is measured in that run.

    A step that mixes prefill and decoding is charged to both by their share of its rows.

    Attributes:
        num_completions: Completions to make.
        num_finished: Completions made.
        num_tokens: Tokens generated.
        num_steps: Model calls.
        num_rows: Decoding rows summed over steps; below ``num_tokens`` where completions shared rows.
        logical_tokens: Prompt tokens counted once per completion.
        unique_tokens: Prompt tokens counted once per node of the prompts' tree.
        prefilled_tokens: Prompt tokens computed; above ``unique_tokens`` where small nodes were folded.
        prefill_s: Seconds of model calls for prompts.
        decode_s: Seconds of model calls for generated tokens.
        sampling_s: Seconds of drawing tokens and checking stop conditions.
        wall_s: Seconds since the run began.
        peak_kv_bytes: Most bytes of KV held at once.
    """

    num_completions: int = 0
    num_finished: int = 0
    num_tokens: int = 0
    num_steps: int = 0
    num_rows: int = 0
    logical_tokens: int = 0
    unique_tokens: int = 0
    prefilled_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    sampling_s: float = 0.0
    wall_s: float = 0.0
    peak_kv_bytes: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second of the whole run, prefill included."""
        return self.num_tokens / self.wall_s if self.wall_s else 0.0
