"""Configuration of the engine: frozen, keyword-only, checked on construction."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from treeshare.errors import ConfigError

Sharing = Literal["tree", "one-level", "none"]
AttentionMode = Literal["on", "off"]

MAX_PREFILL_ROWS = 512
"""Maximum number of rows of a model call that only computes prompts; with more, matmuls gain nothing."""

SEGMENT_ALIGNMENT = 64
"""Segments are padded to a multiple of this many tokens, so that equal-sized ones share a batched matmul."""

ARITHMETIC = 4
"""Version of what is computed: two treeshares of one version give a completion the same bits on one machine.

Every change of bits raises it: of a kernel, of blocks, of the order of a sum, of how tokens are drawn. A run
of another version can be read, not resumed. ``tests/engine/test_arithmetic.py`` holds hashes of fixed runs.
Version 1: keys in blocks at fixed positions of the prompt, float32 by the compiled kernels. Version 2: min-p
before top-k and top-p, these on logits; the end comes after ``min_tokens`` tokens. Version 3:
exponentials and logarithms that no CPU's C library decides, layers of every shape by the kernels. Version 4:
with int8 weights, attention to prompts in codes, too; rows of which some tokens may not be drawn, such as the
first ``min_tokens``, by the kernel, too.
"""

PAGE_SIZE = 64
"""Tokens of a private page unless another number is configured."""


MAX_THREADS = 1024
"""Maximum number of threads that may be asked for."""


def require_int(name: str, value: object, *, low: int, high: int | None = None) -> None:
    """Raise ``ConfigError`` unless ``value`` is an integer in ``[low, high]``."""
    expected = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or value < low or (high is not None and value > high):  # type: ignore[operator]
        raise ConfigError.of(name, got=value, expected=expected)


def require_bool(name: str, value: object) -> None:
    """Raise ``ConfigError`` unless ``value`` is True or False: a text that says no would count as yes."""
    if not isinstance(value, bool):
        raise ConfigError.of(name, got=value, expected="True or False")


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError.of(name, got=value, expected="one of " + ", ".join(choices))


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldCost:
    """What a node of the tree costs per decoding step and layer, in any unit of time.

    A node with ``t > 0`` tokens and ``r`` completions below it costs

        ``launch_cost + merge_cost * min(r, max_rows) + token_cost * t``

    and a tree costs the sum of its nodes. Multiplying queries with keys is not in it: every row attends to
    the same tokens whether they are shared or copied. All integers, so a decision never depends on rounding.

    The defaults suit no machine in particular: ``engine/fold_cost.py`` measures the machine at hand.

    Attributes:
        launch_cost: Fixed cost of attending to one more node: kernel launches, bookkeeping.
        merge_cost: Cost per row of merging one more partial attention state.
        token_cost: Cost of storing one more prompt token: reading its keys and values, and its share of the
            prefill and of the KV budget.
        max_rows: Maximum number of rows that decode in one step. Completions beyond it wait: they add no
            merging to a step, so a long preamble stays shared however many completions there are.
    """

    launch_cost: int = 256
    merge_cost: int = 2
    token_cost: int = 1
    max_rows: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            require_int(field.name, getattr(self, field.name), low=0)

    def node_cost(self, num_tokens: int, num_rows: int) -> int:
        """Cost of one node; an empty one (the root of a forest) costs nothing."""
        if num_tokens == 0:
            return 0
        return (
            self.launch_cost + self.merge_cost * min(num_rows, self.max_rows) + self.token_cost * num_tokens
        )


DEFAULT_FOLD_COST = FoldCost()


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the engine runs; nothing here changes a completion's tokens beyond rounding.

    Attributes:
        max_num_seqs: Maximum number of completions decoded at once (rows of a step).
        prefill_chunk: Tokens of a node that are computed together; chunks always begin at its multiples.
        kv_budget_bytes: Maximum bytes of KV held at once; the process may hold an eighth more for KV that was
            freed. None takes half of the free memory at start, within the limits of a container.
        page_size: Tokens in one private page; a multiple of 16.
        sharing: ``tree``; ``one-level`` (only what all prompts have in common is shared); ``none`` (prompts
            share nothing, even if they are equal).
        attention: ``off`` skips attention: an upper bound for benchmarks, with meaningless tokens.
        backend: Implementation of attention: ``native`` (compiled kernel), ``cpu``, ``triton``,
            ``reference``; ``auto`` takes the fastest that is available.
        fold: Fold small nodes into their children where that costs less.
        fold_cost: The costs that decide it.
        lazy_divergence: Completions whose tokens are identical so far are one row.
        keep_nodes: Keep the KV of prompts for later requests, until its memory is needed.
        profile: Measure where a run's time goes (``Engine.stopwatch``).
        reasoning_parser: How the model marks its reasoning, see ``text.reasoning.reasoning_tags``.
    """

    max_num_seqs: int = 256
    prefill_chunk: int = 16
    kv_budget_bytes: int | None = None
    page_size: int = PAGE_SIZE
    sharing: Sharing = "tree"
    attention: AttentionMode = "on"
    backend: str = "auto"
    fold: bool = True
    fold_cost: FoldCost = DEFAULT_FOLD_COST
    lazy_divergence: bool = True
    keep_nodes: bool = False
    profile: bool = False
    reasoning_parser: str = "auto"

    def __post_init__(self) -> None:
        require_int("max_num_seqs", self.max_num_seqs, low=1, high=8192)
        for name in ("prefill_chunk", "page_size"):
            value = getattr(self, name)
            require_int(name, value, low=16, high=2**30)
            if value % 16:
                raise ConfigError.of(name, got=value, expected="a multiple of 16")
        if self.kv_budget_bytes is not None:
            require_int("kv_budget_bytes", self.kv_budget_bytes, low=1)
        require_choice("sharing", self.sharing, get_args(Sharing))
        require_choice("attention", self.attention, get_args(AttentionMode))
