"""The simulated schedule against counting by hand, and its own cost on a large forest."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

from treeshare.config import PAGE_SIZE, SEGMENT_ALIGNMENT
from treeshare.errors import BudgetError
from treeshare.tree import PromptTree
from treeshare.tree.forecast import Limits, forecast


@dataclass(frozen=True)
class PlainCost:
    """A second per prompt token, one per row and step, and a thousandth per pair."""

    def prefill_s(self, num_tokens, num_pairs):
        return float(num_tokens)

    def decode_s(self, num_rows, shared_pairs, private_pairs):
        return num_rows + (shared_pairs + private_pairs) / 1000


LIMITS = Limits(max_num_seqs=4, kv_budget_bytes=10**9, kept=[(1, None)])
TREE = PromptTree.from_prompts([[1] * 10 + [2] * 5, [1] * 10 + [3] * 7])


def test_by_hand():
    """Eight completions of five tokens on four rows: the first four, then the others."""
    told = forecast(TREE, [4, 4], [5, 5], LIMITS, PlainCost())
    assert (told.unique_tokens, told.logical_tokens, told.generated_tokens) == (22, 4 * 15 + 4 * 17, 40)
    assert (told.num_waves, told.num_steps) == (2, 8)
    assert told.prefill_s == 22
    # Four steps of four rows each time; keys: the prompt, and 1 to 4 own tokens, in the mean 2.5.
    assert told.decode_s == pytest.approx(32 + 4 * 4 * (15 + 17 + 2 * 2.5) / 1000)
    assert told.peak_kv_bytes == 2 * SEGMENT_ALIGNMENT + 4 * PAGE_SIZE


def test_rows_are_refilled_one_by_one():
    told = forecast(TREE, [1, 9], [9, 3], LIMITS, PlainCost())
    assert (told.num_waves, told.num_steps) == (3, 8)
    assert told.generated_tokens == 9 + 27


def test_a_budget_makes_more_steps_and_is_kept():
    free = forecast(TREE, [8, 8], [100, 100], replace(LIMITS, max_num_seqs=16), PlainCost())
    tight = replace(LIMITS, max_num_seqs=16, kv_budget_bytes=128 + 64 + 128 * 5)
    told = forecast(TREE, [8, 8], [100, 100], tight, PlainCost())
    assert told.peak_kv_bytes <= tight.kv_budget_bytes < free.peak_kv_bytes
    assert told.num_steps > free.num_steps
    assert told.generated_tokens == free.generated_tokens
    with pytest.raises(BudgetError, match="expected at least 256 "):
        forecast(TREE, [1, 1], [100, 100], replace(LIMITS, kv_budget_bytes=255), PlainCost())


def test_one_token_needs_no_step():
    told = forecast(TREE, [3, 3], [1, 1], LIMITS, PlainCost())
    assert (told.num_steps, told.decode_s) == (0, 0)


LARGE = """
import re, sys, time
from pathlib import Path
sys.path[:0] = [{here!r}]
from test_forecast import PlainCost
from treeshare.tree import PromptTree, fold_tree
from treeshare.tree.forecast import Limits, forecast
prompts = [[7] * 400 + [i % 50 + 10] * 60 + [i % 97 + 10, i // 97 + 10] * 40 for i in range(10_000)]
started = time.perf_counter()
tree = fold_tree(PromptTree.from_prompts(prompts), 32)
limits = Limits(max_num_seqs=256, kv_budget_bytes=8 << 30, kept=[(46_080, None)])
told = forecast(tree, [100] * 10_000, [256] * 10_000, limits, PlainCost())
assert told.generated_tokens == 256_000_000
assert told.peak_kv_bytes <= 8 << 30
seconds = time.perf_counter() - started  # ru_maxrss would count the parent's too
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
print(seconds, int(peak[1]) / 2**20)
"""


def test_ten_thousand_problems():
    """A million completions are planned in seconds, within a GiB."""
    from pathlib import Path

    code = LARGE.format(here=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, gib = map(float, done.stdout.split())
    assert seconds < 20
    assert gib < 1
