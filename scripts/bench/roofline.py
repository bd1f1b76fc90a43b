"""What named GPUs could do at best with the Triton backend's plans: a model on paper, nothing is measured.

    python scripts/bench/roofline.py --out docs/bench/triton_roofline

Every kernel's floating-point operations and bytes are counted from the work items of a step's real plan,
made without memory for its KV. A kernel takes the longer of the two at the data sheet's rates; kernels run
one after another; launches, synchronisation and what caches miss cost nothing. So times are lower bounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from measuring import guarded, table

from treeshare.attention import AttentionSpec, DecodeRow, build_layout
from treeshare.attention.triton.arrays import PlanKey
from treeshare.attention.triton.tables import KernelTables
from treeshare.kv import KVGeometry, KVStore

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU by NVIDIA's data sheets.

    Attributes:
        name: In tables.
        flops: Dense 16-bit floating-point operations per second.
        bandwidth: Bytes per second from its memory.
        processors: Multiprocessors.
    """

    name: str
    flops: float
    bandwidth: float
    processors: int


GPUS = (
    Gpu(name="A100 SXM 40 GB", flops=312e12, bandwidth=1.555e12, processors=108),
    Gpu(name="H100 SXM 80 GB", flops=989e12, bandwidth=3.35e12, processors=132),
    Gpu(name="H200 SXM 141 GB", flops=989e12, bandwidth=4.8e12, processors=132),
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one kernel does in one layer.

    Attributes:
        flops: Of its matmuls, tiles' padding included.
        useful_flops: Of pairs of a query and a key that it sees.
        num_bytes: From and to memory, each byte once a launch.
    """

    flops: float = 0.0
    useful_flops: float = 0.0
    num_bytes: float = 0.0

    def seconds(self, gpu: Gpu) -> float:
        """The minimum time that the roofline allows."""
        return max(self.flops / gpu.flops, self.num_bytes / gpu.bandwidth)


def plan_costs(plan: KernelTables) -> dict[str, Cost]:
    """The cost of each kernel of a plan, for one layer."""
    shape = plan.shape
    num_q_heads, size = shape.num_q_heads, shape.dtype.itemsize
    num_kv_heads, head_dim = shape.num_kv_heads, shape.layer.key_width
    token_bytes = 2 * num_kv_heads * head_dim * size
    row_bytes = num_q_heads * head_dim * size
    state_bytes = num_q_heads * (head_dim + 2) * 4
    per_pair, per_tile_pair = 4.0 * num_q_heads * head_dim, 4.0 * num_kv_heads * shape.key_block

    def slices(items: np.ndarray) -> Cost:
        if not len(items):
            return Cost()
        first, last, tile, block, index, _, begin, end, _, position, _ = items.astype(np.int64).T
        keys, count = end - begin, last - first
        tiles = shape.slice_tile
        stacked = np.clip(count * shape.group_size - tile, 0, tiles.rows)
        blocks = -(-keys // tiles.keys) * tiles.keys
        is_first_tile = tile == 0
        seen = stacked * keys / shape.group_size
        for item in np.flatnonzero(position >= 0):  # a causal row sees its past alone
            rows = np.arange(tile[item], tile[item] + stacked[item]) // shape.group_size
            own = np.clip(position[item] + rows + 1, begin[item], end[item]) - begin[item]
            seen[item] = own.sum() / shape.group_size
        read: dict[tuple[int, int, int], int] = {}
        for place in zip(block.tolist(), index.tolist(), begin.tolist(), end.tolist(), strict=True):
            read[place[:3]] = max(read.get(place[:3], 0), place[3] - place[2])
        rows_moved = float((count * is_first_tile).sum())
        return Cost(
            flops=per_tile_pair * tiles.rows * float(blocks.sum()),
            useful_flops=per_pair * float(seen.sum()),
            num_bytes=token_bytes * sum(read.values()) + rows_moved * (row_bytes + state_bytes),
        )

    private = plan.private.numpy().astype(np.int64)
    tokens = private[:, 2]
    sources = plan.sources.numpy().astype(np.int64)
    num_rows = plan.layout.num_rows
    merged_bytes = float(sources[:, 2].sum()) * state_bytes + num_rows * (row_bytes + num_q_heads * 4)
    page_blocks = float((-(-tokens // shape.page_tile.keys)).sum())
    return {
        "store_tokens": Cost(num_bytes=2.0 * num_rows * token_bytes),
        "attend_slices": slices(plan.shared.numpy()),
        "attend_slices causal": slices(plan.causal.numpy()),
        "attend_pages": Cost(
            flops=per_tile_pair * shape.page_tile.rows * page_blocks * shape.page_tile.keys,
            useful_flops=per_pair * float(tokens.sum()),
            num_bytes=token_bytes * float(tokens.sum()) + len(tokens) * (row_bytes + state_bytes),
        ),
        "merge_states": Cost(num_bytes=merged_bytes),
    }


def shared_prefix_plan(
    geometry: KVGeometry, *, num_rows: int, prefix: int, private: int, group_size: int, processors: int
) -> KernelTables:
    """A decoding step of ``num_rows`` sequences below one prefix, each with ``private`` tokens of its own."""
    page_size = 64
    pages = private // page_size + 1
    store = KVStore(
        geometry, budget_bytes=1 << 60, page_size=page_size, max_pages=num_rows * pages, device="meta"
    )
    root = store.segments.new(start=0, num_tokens=prefix, order=0, parent=None)
    rows = [DecodeRow(root, store.tables.new(pages), private) for _ in range(num_rows)]
    layout, num_q_heads = build_layout(store, [], rows), geometry.layers[0].num_heads * group_size
    key = PlanKey.of(layout, 0, AttentionSpec(scale=1.0), num_rows, num_q_heads)
    return KernelTables.make(layout, key, torch.device("cpu"), processors, with_scratch=False)


CODE_LLAMA_13B = KVGeometry.uniform(num_layers=1, num_kv_heads=40, head_dim=128, dtype=torch.float16)
LAYERS, PARAMETERS, NUM_ROWS, NEW_TOKENS, NUM_GPUS = 40, 13.0e9, 1024, 128, 8
PAPER_CEILING = 18.5
PAPER = {
    1024: (15.6, 4.9),
    2048: (15.5, 2.8),
    4096: (15.3, 1.6),
    8192: (14.8, 0.8),
    16_256: (14.0, 0.4),
}
"""Thousands of tokens/s in Hydragen's table 3, by prefix: tree attention, and vLLM without detokenizing;
above, without attention. Its column 16K is 16256 tokens."""


def predict(gpu: Gpu) -> list[dict[str, float]]:
    """For each prefix of the paper's experiment, milliseconds of a step half way through, and tokens/s."""
    records = []
    for prefix in PAPER:
        plan = shared_prefix_plan(
            CODE_LLAMA_13B,
            num_rows=NUM_ROWS,
            prefix=prefix,
            private=NEW_TOKENS // 2,
            group_size=1,
            processors=gpu.processors * NUM_GPUS,
        )
        costs = plan_costs(plan)
        times = {name: cost.seconds(gpu) * LAYERS / NUM_GPUS for name, cost in costs.items()}
        attention = sum(times.values())
        linear = max(2 * PARAMETERS * NUM_ROWS / gpu.flops, 2 * PARAMETERS / gpu.bandwidth) / NUM_GPUS
        alone = costs["attend_pages"].num_bytes / (NEW_TOKENS // 2 + 1) * (prefix + NEW_TOKENS // 2)
        records.append(
            {
                "prefix": prefix,
                "shared_ms": times["attend_slices"] * 1e3,
                "private_ms": times["attend_pages"] * 1e3,
                "other_ms": (times["merge_states"] + times["store_tokens"]) * 1e3,
                "linear_ms": linear * 1e3,
                "roof_tok_s": NUM_ROWS / (attention + linear),
                "attention_ms": attention * 1e3,
                "on_paper_ceiling_tok_s": NUM_ROWS / (attention + NUM_ROWS / (PAPER_CEILING * 1e3)),
                "no_sharing_tok_s": NUM_ROWS
                / (alone / gpu.bandwidth * LAYERS / NUM_GPUS + NUM_ROWS / (PAPER_CEILING * 1e3)),
            }
        )
    return records


def report(predictions: dict[str, list[dict[str, float]]]) -> str:
    """The tables and what they say."""
    parts = [
        "# Roofline of the Triton backend: a prediction\n",
        "**Nothing here was measured on a GPU.** `scripts/bench/roofline.py` counts operations and bytes "
        "from the plans that the backend would launch and divides by data-sheet rates: lower bounds of "
        "times, upper bounds of tokens/s. Launches, communication between GPUs and imperfect kernels are not "
        "in it.\n",
        f"Setting: Hydragen, arXiv 2402.05099, section 4.1: CodeLlama-13B, batch {NUM_ROWS}, "
        f"{NEW_TOKENS} new tokens, tensor parallel over {NUM_GPUS} GPUs; a step half way through.\n",
    ]
    header = ["prefix", "shared ms", "private ms", "merge, store ms", "linear ms", "tok/s, all at the roof"]
    for name, records in predictions.items():
        rows = [
            [
                f"{record['prefix']:.0f}",
                *(f"{record[key]:.2f}" for key in ("shared_ms", "private_ms", "other_ms", "linear_ms")),
                f"{record['roof_tok_s'] / 1e3:.1f}k",
            ]
            for record in records
        ]
        parts += [f"\n## {NUM_GPUS} x {name}\n", table(header, rows)]
    parts += [f"\n## Beside the paper (8 x {GPUS[0].name})\n", _beside_the_paper(predictions[GPUS[0].name])]
    return "\n".join(parts) + "\n"


def _beside_the_paper(records: list[dict[str, float]]) -> str:
    ceiling_ms = NUM_ROWS / PAPER_CEILING
    header = [
        "prefix",
        "attention ms, predicted",
        "paper",
        "tok/s, predicted with the paper's rest",
        "paper",
        "tok/s without sharing, predicted",
        "paper (vLLM)",
    ]
    rows, shares, reached = [], [], []
    for record in records:
        tree, alone = PAPER[int(record["prefix"])]
        paper_ms = NUM_ROWS / tree - ceiling_ms
        shares.append(record["attention_ms"] / paper_ms)
        reached.append(alone / record["no_sharing_tok_s"] * 1e3)
        rows.append(
            [
                f"{record['prefix']:.0f}",
                f"{record['attention_ms']:.1f}",
                f"{paper_ms:.1f}",
                f"{record['on_paper_ceiling_tok_s'] / 1e3:.1f}k",
                f"{tree}k",
                f"{record['no_sharing_tok_s'] / 1e3:.1f}k",
                f"{alone}k",
            ]
        )
    roof = NUM_ROWS / records[0]["linear_ms"]
    text = (
        f"\nWhere it is off. Without attention the roof is {roof:.0f}k tokens/s, {roof / PAPER_CEILING:.1f} "
        f"times the paper's {PAPER_CEILING}k: the model leaves out what that run paid for, reductions "
        "between eight GPUs twice a layer, launches, norms, sampling, matmuls below their peak. So the "
        "columns above take the paper's own ceiling for everything but attention. What attention took in "
        "the paper is the difference of two of its figures of three digits; the prediction is "
        f"{min(shares):.0%} to {max(shares):.0%} of it: kernels at their roof, without launches or misses "
        "of a cache, against kernels as they were. Merging grows with the prefix because few heads a GPU "
        "leave it idle unless the prefix is cut, and then every chunk of 512 keys leaves a partial result. "
        "Without sharing the model reads every key and value once a step and nothing else; vLLM of the time "
        f"reached {min(reached):.0%} to {max(reached):.0%} of that."
    )
    return table(header, rows) + "\n" + text


def _main(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="results: OUT.md, OUT.json")
    args = parser.parse_args(argv)
    predictions = {gpu.name: predict(gpu) for gpu in GPUS}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    text = report(predictions)
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")
    args.out.with_suffix(".json").write_text(json.dumps(predictions, indent=1) + "\n", encoding="utf-8")
    print(text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    return guarded("roofline", _main, argv)


if __name__ == "__main__":
    sys.exit(main())
