"""Predicts the steps, time and memory of a run by simulating its schedule.

The simulation admits completions as the engine does: depth-first, limited by rows and by the bytes that each
row is expected to need. A node is computed once and freed when the last completion below it ends. The
simulation jumps from one end of completions to the next, so its cost grows with the number of problems, not
of tokens.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from treeshare.config import PAGE_SIZE, SEGMENT_ALIGNMENT
from treeshare.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.tree.prompt_tree import PromptTree


class StepCost(Protocol):
    """Seconds that parts of a run take on some device.

    A pair is a row together with a key that it attends to.
    """

    def prefill_s(self, num_tokens: int, num_pairs: int) -> float:
        """Seconds to compute ``num_tokens`` prompt tokens."""

    def decode_s(self, num_rows: int, shared_pairs: float, private_pairs: float) -> float:
        """Seconds of a decoding step of ``num_rows`` rows, sampling included.

        Args:
            num_rows: Rows of the step.
            shared_pairs: Pairs with keys of prompts.
            private_pairs: Pairs with keys of generated tokens.
        """


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a run, and the sizes in which KV is allocated.

    Attributes:
        max_num_seqs: Maximum number of completions decoded at once.
        kv_budget_bytes: Maximum bytes of KV.
        kept: KV bytes of a token in layers whose rows see equally far, and how far: positions; None: all.
        page_size: Tokens of a private page.
        alignment: Tokens to a multiple of which a segment is padded.
    """

    max_num_seqs: int
    kv_budget_bytes: int
    kept: Sequence[tuple[int, int | None]]
    page_size: int = PAGE_SIZE
    alignment: int = SEGMENT_ALIGNMENT


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run is predicted to take.

    Attributes:
        logical_tokens: Prompt tokens counted once per completion.
        unique_tokens: Prompt tokens counted once per node of the folded tree, and again if a freed node is
            computed anew.
        generated_tokens: Tokens to generate.
        num_waves: How many times completions are admitted.
        num_steps: Decoding steps.
        peak_kv_bytes: Maximum bytes of KV held at once.
        prefill_s: Seconds of computing prompts.
        decode_s: Seconds of decoding and sampling.
    """

    logical_tokens: int
    unique_tokens: int
    generated_tokens: int
    num_waves: int
    num_steps: int
    peak_kv_bytes: int
    prefill_s: float
    decode_s: float

    @property
    def wall_s(self) -> float:
        """Seconds of the whole run."""
        return self.prefill_s + self.decode_s


def forecast(
    tree: PromptTree, counts: Sequence[int], new_tokens: Sequence[int], limits: Limits, cost: StepCost
) -> Forecast:
    """Simulate a run.

    Args:
        tree: The prompt tree, folded as the engine folds it.
        counts: Completions of each prompt.
        new_tokens: Tokens of each of a prompt's completions, by prompt; at least 1.
        limits: See ``Limits``.
        cost: What the parts of a run cost.

    Raises:
        BudgetError: If the budget does not hold a prompt with a single completion.
    """
    return _Simulation(tree, counts, new_tokens, limits, cost).run()


class _Simulation:
    """The state of a simulated run; ``now`` is the number of decoding steps so far."""

    def __init__(
        self,
        tree: PromptTree,
        counts: Sequence[int],
        new_tokens: Sequence[int],
        limits: Limits,
        cost: StepCost,
    ) -> None:
        self.tree, self.counts, self.new_tokens = tree, counts, new_tokens
        self.limits, self.cost = limits, cost
        self.not_admitted = list(counts)  # completions, by prompt
        self.waiting = sorted(
            range(len(counts)), key=lambda i: -tree.prompt_nodes[i]
        )  # the next prompt is last
        self.unfinished = [0] * len(tree.nodes)
        for node in reversed(tree.nodes):
            self.unfinished[node.node_id] += sum(counts[prompt] for prompt in node.prompts)
            if node.parent >= 0:
                self.unfinished[node.parent] += self.unfinished[node.node_id]
        self.live = [False] * len(tree.nodes)
        self.running: list[tuple[int, int, int, int]] = []  # last step, prompt, completions, first step
        self.now = self.num_rows = self.shared_pairs = 0
        self.sum_of_first_steps = 0  # over running rows
        self.node_bytes = self.reserved_bytes = self.peak_bytes = 0
        self.prefill_s = self.decode_s = 0.0
        self.num_waves = self.unique_tokens = 0

    def run(self) -> Forecast:
        """Go from one end of completions to the next until all have ended."""
        while self.waiting or self.running:
            self._admit()
            self._decode_until_an_end()
        return Forecast(
            logical_tokens=sum(
                n * self.tree.nodes[node].end
                for n, node in zip(self.counts, self.tree.prompt_nodes, strict=True)
            ),
            unique_tokens=self.unique_tokens,
            generated_tokens=sum(n * t for n, t in zip(self.counts, self.new_tokens, strict=True)),
            num_waves=self.num_waves,
            num_steps=self.now,
            peak_kv_bytes=self.peak_bytes,
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
        )

    def _pages_bytes(self, num_tokens: int) -> int:
        size = self.limits.page_size
        num_pages, num_bytes = -(-num_tokens // size), 0
        for token_bytes, reach in self.limits.kept:
            kept = num_pages if reach is None else min(num_pages, -(-(reach - 1) // size) + 1)
            num_bytes += kept * size * token_bytes
        return num_bytes

    def _segment_bytes(self, num_tokens: int) -> int:
        padded = -(-num_tokens // self.limits.alignment) * self.limits.alignment
        return padded * sum(token_bytes for token_bytes, _ in self.limits.kept)

    def _admit(self) -> None:
        num_tokens = num_pairs = 0
        has_admitted = False
        while self.waiting and self.num_rows < self.limits.max_num_seqs:
            prompt = self.waiting[-1]
            node_id = self.tree.prompt_nodes[prompt]
            missing = [self.tree.nodes[i] for i in self.tree.path(node_id) if not self.live[i]]
            node_bytes = sum(self._segment_bytes(node.num_tokens) for node in missing)
            row_bytes = self._pages_bytes(self.new_tokens[prompt] - 1)
            free = self.limits.kv_budget_bytes - self.node_bytes - self.reserved_bytes - node_bytes
            rows = min(self.not_admitted[prompt], self.limits.max_num_seqs - self.num_rows)
            count = min(rows, free // row_bytes) if row_bytes else rows * (free >= 0)
            if count < 1 and self.not_admitted[prompt]:
                if not self.running:
                    raise BudgetError(
                        f"kv_budget_bytes: got {self.limits.kv_budget_bytes}, expected at least "
                        f"{node_bytes + row_bytes} (prompt {prompt} with a single completion); raise it"
                    )
                break
            self.not_admitted[prompt] -= count
            if not self.not_admitted[prompt]:
                self.waiting.pop()
            if not count:
                continue
            for node in missing:
                self.live[node.node_id] = True
                num_tokens += node.num_tokens
                num_pairs += node.num_tokens * (node.start + node.num_tokens // 2)
            self.node_bytes += node_bytes
            self.reserved_bytes += count * row_bytes
            self.num_rows += count
            self.shared_pairs += count * self.tree.nodes[node_id].end
            self.sum_of_first_steps += count * self.now
            end = self.now + self.new_tokens[prompt] - 1
            heapq.heappush(self.running, (end, prompt, count, self.now))
            has_admitted = True
        self.num_waves += has_admitted
        if num_tokens:
            self.unique_tokens += num_tokens
            self.prefill_s += self.cost.prefill_s(num_tokens, num_pairs)

    def _decode_until_an_end(self) -> None:
        if not self.running:
            return
        end = self.running[0][0]
        num_steps = end - self.now
        mean_pairs = (self.now + end + 1) / 2 * self.num_rows - self.sum_of_first_steps
        if num_steps:
            step_s = self.cost.decode_s(self.num_rows, self.shared_pairs, mean_pairs)
            self.decode_s += num_steps * step_s
        self.now = end
        page_bytes = sum(count * self._pages_bytes(self.now - first) for _, _, count, first in self.running)
        self.peak_bytes = max(self.peak_bytes, self.node_bytes + page_bytes)
        while self.running and self.running[0][0] == self.now:
            _, prompt, count, first = heapq.heappop(self.running)
            node_id = self.tree.prompt_nodes[prompt]
            self.num_rows -= count
            self.shared_pairs -= count * self.tree.nodes[node_id].end
            self.sum_of_first_steps -= count * first
            self.reserved_bytes -= count * self._pages_bytes(self.new_tokens[prompt] - 1)
            for i in self.tree.path(node_id):
                self.unfinished[i] -= count
                if not self.unfinished[i] and self.live[i]:
                    self.live[i] = False
                    self.node_bytes -= self._segment_bytes(self.tree.nodes[i].num_tokens)
