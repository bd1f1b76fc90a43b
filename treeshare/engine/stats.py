"""Measurements of a run."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence as Items

    from treeshare.engine.scheduler import StepPlan
    from treeshare.engine.sequence import Request
    from treeshare.tree import PromptTree


LATEST_STEPS = 1000
"""Steps of which each one's seconds and rows are kept; of those before only the longest: a server runs for
months."""


@dataclass(slots=True)
class StepLog:
    """Seconds and rows of the latest steps, and the longest of all before them.

    Attributes:
        seconds: Of each of the latest steps.
        rows: Decoding rows and prompt tokens of each.
        longest_before: Seconds and rows of the longest step that is no longer among them.
    """

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST_STEPS))
    rows: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=LATEST_STEPS))
    longest_before: tuple[float, tuple[int, int]] = (0.0, (0, 0))

    def note(self, seconds: float, num_rows: int, num_prompt_tokens: int) -> None:
        """A step has ended."""
        if len(self.seconds) == LATEST_STEPS:
            self.longest_before = max(self.longest_before, (self.seconds[0], self.rows[0]))
        self.seconds.append(seconds)
        self.rows.append((num_rows, num_prompt_tokens))

    @property
    def longest(self) -> tuple[float, tuple[int, int]]:
        """Seconds and rows of the longest step, the first of equally long ones; zeros before the first."""
        latest = zip(self.seconds, self.rows, strict=True)
        return max((self.longest_before, *latest), key=lambda step: step[0])


@dataclass(slots=True)
class EngineStats:
    """Counters and clocks of one run; every figure is measured in that run.

    A step that mixes prefill and decoding is charged to both by their share of its rows.

    Attributes:
        num_completions: Completions to make.
        num_finished: Completions made.
        num_cancelled: Completions that were cancelled.
        num_tokens: Tokens generated.
        num_masks: Masks of grammars computed; below ``num_tokens`` where completions agree.
        num_steps: Model calls with decoding rows.
        num_rows: Decoding rows summed over steps; below ``num_tokens`` where completions shared rows.
        num_replayed: Those of them that computed again a token whose KV had been dropped.
        num_preemptions: How often a sequence lost its KV.
        num_full_steps: Steps while completions were waiting for a row.
        num_full_rows: Rows that drew a token, summed over those steps.
        steps: Seconds and rows of the latest steps, and of the longest one.
        logical_tokens: Prompt tokens counted once per completion.
        unique_tokens: Prompt tokens counted once per node of the prompts' tree.
        prefilled_tokens: Prompt tokens computed; above ``unique_tokens`` where small nodes were folded.
        prefill_s: Seconds of model calls for prompts.
        decode_s: Seconds of model calls for generated tokens.
        sampling_s: Seconds of drawing tokens and checking stop conditions.
        wall_s: Seconds since the run began.
        peak_kv_bytes: Maximum bytes of KV held at once.
    """

    num_completions: int = 0
    num_finished: int = 0
    num_cancelled: int = 0
    num_tokens: int = 0
    num_masks: int = 0
    num_steps: int = 0
    num_rows: int = 0
    num_replayed: int = 0
    num_preemptions: int = 0
    num_full_steps: int = 0
    num_full_rows: int = 0
    steps: StepLog = field(default_factory=StepLog)
    logical_tokens: int = 0
    unique_tokens: int = 0
    prefilled_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    sampling_s: float = 0.0
    wall_s: float = 0.0
    peak_kv_bytes: int = 0

    def note_prompts(self, tree: PromptTree, requests: Items[Request]) -> None:
        """Count the prompt tokens of requests that have come; their prompts make ``tree``."""
        self.unique_tokens += sum(node.num_tokens for node in tree.nodes)
        self.logical_tokens += sum(
            len(request.completion_indices) * len(request.prompt_token_ids) for request in requests
        )

    def note_step(self, plan: StepPlan, num_drawing: int) -> None:
        """Count a step that was planned and run; ``num_drawing`` of its decoding rows draw a token."""
        num_rows = len(plan.rows)
        self.num_preemptions += plan.num_preemptions
        if num_rows:
            self.num_steps += 1
            self.num_rows += num_rows
            self.num_replayed += num_rows - num_drawing
            self.num_full_steps += plan.is_full
            self.num_full_rows += num_drawing * plan.is_full

    def note_model_call(self, plan: StepPlan, seconds: float) -> None:
        """Charge the ``seconds`` of a step's model call to prefill and decoding, by their rows."""
        num_rows, num_prompt_tokens = len(plan.rows), plan.num_prompt_tokens
        share = num_rows / (num_rows + num_prompt_tokens)
        self.prefilled_tokens += num_prompt_tokens
        self.decode_s += seconds * share
        self.prefill_s += seconds * (1 - share)

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second of the whole run, prefill included."""
        return self.num_tokens / self.wall_s if self.wall_s else 0.0

    @property
    def step_s(self) -> deque[float]:
        """Seconds of each of the latest steps, at most ``LATEST_STEPS``."""
        return self.steps.seconds

    @property
    def step_rows(self) -> deque[tuple[int, int]]:
        """Decoding rows and prompt tokens of each of the latest steps."""
        return self.steps.rows

    @property
    def longest_step_s(self) -> float:
        """Seconds of the longest step of all; 0 before the first."""
        return self.steps.longest[0]

    @property
    def median_step_s(self) -> float:
        """Seconds of the median of the latest steps; 0 before the first."""
        return statistics.median(self.step_s) if self.step_s else 0.0

    @property
    def longest_step_rows(self) -> tuple[int, int]:
        """Decoding rows and prompt tokens of the longest step of all; none before the first."""
        return self.steps.longest[1]

    def occupancy(self, max_rows: int) -> float | None:
        """Mean share of ``max_rows`` that drew a token while completions were waiting; None if none was."""
        return self.num_full_rows / (self.num_full_steps * max_rows) if self.num_full_steps else None
