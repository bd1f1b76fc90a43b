"""The Triton backend on a GPU: FastTree's tree shapes, right first, then a layer's time; then whole runs.

    python scripts/bench/gpu_bench.py --out docs/bench/gpu

Beside it: PyTorch's attention over every sequence's whole path, and FlashInfer's cascade if it is installed.
Every result is first held against brute force in float64: at most twice the error of plain attention in the
same dtype, plus rounding. Whole runs of a model stand beside the same without sharing and without any
attention, the ceiling. ``scripts/bench_gpu.sh`` runs this where there is a GPU. Interpreted
(``TRITON_INTERPRET=1``, ``--device cpu``) it checks and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from measuring import guarded, machine, table
from torch.nn import functional
from tree_shapes import FAST_TREE, HEADS, TreeShape

from treeshare import LLM, SamplingParams
from treeshare.attention import AttentionSpec, DecodeRow, TritonAttention, build_layout
from treeshare.errors import ConfigError
from treeshare.kv import KVGeometry, KVStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

HEAD_DIM, PAGE_SIZE, DTYPE = 128, 64, torch.float16
ROWS_AT_ONCE = 16
"""Rows whose whole paths are copied out together for the check."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A decoding step over a tree of random KV: each leaf is a sequence with private tokens.

    Attributes:
        store: Holds the KV.
        rows: The sequences.
        query: ``[R, Q, D]``.
        key: ``[R, H, D]``.
        value: ``[R, H, D]``.
    """

    store: KVStore
    rows: list[DecodeRow]
    query: Tensor
    key: Tensor
    value: Tensor

    @classmethod
    def make(cls, shape: TreeShape, num_q_heads: int, num_kv_heads: int, device: torch.device) -> Inputs:
        """Random inputs for a shape."""
        geometry = KVGeometry.uniform(num_layers=1, num_kv_heads=num_kv_heads, head_dim=HEAD_DIM, dtype=DTYPE)
        num_private, num_rows = shape.lengths[-1] - 1, shape.widths[-1]
        pages = num_private // PAGE_SIZE + 1
        store = KVStore(
            geometry, budget_bytes=1 << 60, page_size=PAGE_SIZE, max_pages=num_rows * pages, device=device
        )
        levels = []
        for level, (width, length) in enumerate(zip(shape.widths[:-1], shape.lengths[:-1], strict=True)):
            store.segments.reserve(length, width)
            parents = [levels[-1][shape.parent(level, place)] if level else None for place in range(width)]
            start = sum(shape.lengths[:level])
            levels.append(
                [store.segments.new(start=start, num_tokens=length, order=0, parent=p) for p in parents]
            )
        last = len(shape.widths) - 1
        leaves = [levels[-1][shape.parent(last, place)] for place in range(num_rows)]
        _number_depth_first(leaves)
        rows = [DecodeRow(leaf, store.tables.new(pages), num_private) for leaf in leaves]
        tensors = {
            id(t): t for leaf in leaves for s in leaf.path() for t in (s.block.keys_t[0], s.block.values[0])
        }
        for tensor in (*tensors.values(), store.pools[0].keys[0], store.pools[0].values[0]):
            tensor.normal_()
        sizes = ((num_rows, heads, HEAD_DIM) for heads in (num_q_heads, num_kv_heads, num_kv_heads))
        query, key, value = (torch.randn(size, device=device).to(DTYPE) for size in sizes)
        return cls(store=store, rows=rows, query=query, key=key, value=value)

    def path(self, row: int) -> tuple[Tensor, Tensor]:
        """All keys and values of a sequence, ``[n, H, D]``."""
        source, pool = self.rows[row], self.store.pools[0]
        segments = source.segment.path()
        pages = torch.tensor([page.index for page in source.pages], device=self.query.device)
        # [P, H, C, D] -> [P * C, H, D]
        private_k = pool.keys[0][pages].transpose(1, 2).flatten(0, 1)[: source.num_private]
        private_v = pool.values[0][pages][..., :HEAD_DIM].transpose(1, 2).flatten(0, 1)[: source.num_private]
        keys = [segment.keys(0) for segment in segments]
        values = [segment.values(0) for segment in segments]
        return (
            torch.cat([*keys, private_k, self.key[row : row + 1]]),
            torch.cat([*values, private_v, self.value[row : row + 1]]),
        )

    def paths(self, rows: range) -> tuple[Tensor, Tensor]:
        """Whole paths of some rows, ``[len(rows), H, n, D]``."""
        pairs = [self.path(row) for row in rows]
        keys, values = (torch.stack(column).transpose(1, 2) for column in zip(*pairs, strict=True))
        return keys.contiguous(), values.contiguous()


def _number_depth_first(leaves: Sequence[object]) -> None:
    """Give every segment on a path to ``leaves``, which are in order, its depth-first rank."""
    seen: dict[int, None] = {}
    for leaf in leaves:
        for segment in leaf.path():  # type: ignore[attr-defined]
            if id(segment) not in seen:
                segment.order = len(seen)
                seen[id(segment)] = None


def check(inputs: Inputs, out: Tensor) -> float:
    """The error over its budget; above 1 the result is wrong."""
    worst = budget = 0.0
    num_rows, num_q_heads, _ = inputs.query.shape
    for first in range(0, num_rows, ROWS_AT_ONCE):
        rows = range(first, min(first + ROWS_AT_ONCE, num_rows))
        keys, values = (x.repeat_interleave(num_q_heads // x.shape[1], 1) for x in inputs.paths(rows))
        query = inputs.query[first : rows.stop].unsqueeze(2)
        exact = _plain(query.double(), keys.double(), values.double())
        eager = _plain(query, keys, values).double()
        worst = max(worst, (out[first : rows.stop].double() - exact).abs().max().item())
        rounding = torch.finfo(DTYPE).eps * exact.abs().max().item()
        budget = max(budget, 2 * (eager - exact).abs().max().item() + rounding)
    return worst / budget


def _plain(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    scores = query @ keys.transpose(2, 3) * HEAD_DIM**-0.5
    return (
        scores.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype) @ values
    )[:, :, 0]


def milliseconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call, after three that warm up."""
    times = []
    for number in range(repeats + 3):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        if number >= 3:
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def whole_paths(inputs: Inputs, free_bytes: float) -> Callable[[], object] | None:
    """PyTorch's attention over copies of all paths; None where they do not fit."""
    num_rows, num_q_heads, _ = inputs.query.shape
    keys, values = inputs.path(0)
    if num_rows * (keys.nbytes + values.nbytes) > free_bytes / 3:
        return None
    all_keys, all_values = inputs.paths(range(num_rows))
    query = inputs.query.unsqueeze(2)
    grouped = num_q_heads != all_keys.shape[1]
    return lambda: functional.scaled_dot_product_attention(query, all_keys, all_values, enable_gqa=grouped)


def cascade(inputs: Inputs, shape: TreeShape) -> Callable[[], object] | None:
    """FlashInfer's cascade, one level a level of the tree, pages of one token; None where it is missing."""
    if importlib.util.find_spec("flashinfer") is None:
        return None
    flashinfer = importlib.import_module("flashinfer")
    device, num_rows = inputs.query.device, shape.widths[-1]
    levels = list(zip(shape.widths, shape.lengths, strict=True))
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(len(levels), workspace, "NHD")

    def int32(values: object) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int32, device=device)

    place = torch.arange(num_rows, device=device)
    query_indptr, first_token, indices = [], 0, []
    for width, length in levels:
        counts = torch.bincount(place * width // num_rows, minlength=width)
        query_indptr.append(int32([0, *counts.cumsum(0).tolist()]))
        indices.append(int32(range(first_token, first_token + width * length)))
        first_token += width * length
    wrapper.plan(
        query_indptr,
        [int32([length * n for n in range(width + 1)]) for width, length in levels],
        indices,
        [int32([1] * width) for width, _ in levels],
        inputs.query.shape[1],
        inputs.key.shape[1],
        HEAD_DIM,
        1,
    )
    cache = torch.randn(first_token, 2, 1, inputs.key.shape[1], HEAD_DIM, device=device, dtype=DTYPE)
    return lambda: wrapper.run(inputs.query, cache)


def measure(shape: TreeShape, heads: tuple[int, int], device: torch.device, repeats: int) -> list[str]:
    """A row of the table: whether it is right, and milliseconds of one layer."""
    inputs = Inputs.make(shape, *heads, device)
    backend = TritonAttention(inputs.store.geometry, device)
    started = time.perf_counter()
    layout = build_layout(inputs.store, [], inputs.rows)

    def ours() -> Tensor:
        return backend.attend(
            inputs.query,
            inputs.key,
            inputs.value,
            layer=0,
            layout=layout,
            spec=AttentionSpec(scale=HEAD_DIM**-0.5),
        ).out

    error = check(inputs, ours())
    if not error <= 1:
        raise FloatingPointError(f"{shape.name}, heads {heads}: error is {error:.2f} times its budget")
    planned = time.perf_counter() - started
    if device.type != "cuda":
        return [shape.name, f"{heads[0]}/{heads[1]}", f"{error:.2f}", "-", "-", "-"]
    free = torch.cuda.mem_get_info(device)[0]
    took = milliseconds(ours, device, repeats)
    others = [whole_paths(inputs, free), cascade(inputs, shape)]
    times = [milliseconds(run, device, repeats) if run else None for run in others]
    cells = [f"{took:.3f}", *("-" if other is None else f"{other:.3f}" for other in times)]
    print(f"{shape.name}, heads {heads}: {cells} ms, {planned:.1f} s to check", file=sys.stderr)
    return [shape.name, f"{heads[0]}/{heads[1]}", f"{error:.2f}", *cells]


def whole_runs(model: str, device: torch.device) -> list[list[str]]:
    """Tokens per second of few-shot sampling, prefill included: 8 problems of 2048 + 256 tokens, 32 times."""
    draws = np.random.default_rng(0)
    shared, *own = (draws.integers(2, 100, length).tolist() for length in (2048, *(256,) * 8))
    prompts = [{"prompt_token_ids": shared + tokens} for tokens in own]
    params = SamplingParams(n=32, temperature=0.8, max_tokens=128, ignore_eos=True, seed=0)
    rows = []
    for name, options in (
        ("tree", {}),
        ("no sharing", {"sharing": "none"}),
        ("no attention: the ceiling", {"attention": "off"}),
    ):
        llm = LLM(model, device=str(device), **options)
        llm.generate(prompts, params, use_tqdm=False)  # compiles kernels, captures graphs
        started = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        num_tokens = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
        rows.append([name, f"{num_tokens / seconds:.0f}", f"{seconds:.2f}"])
    return rows


def report(rows: list[list[str]], runs: str, device: torch.device, left_out: int) -> str:
    """The report."""
    header = [
        "nodes x tokens, level by level",
        "heads",
        "error / budget",
        "ours ms",
        "whole paths ms",
        "cascade ms",
    ]
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else "Interpreted, so nothing was timed"
    )
    lines = [
        "# The Triton backend on FastTree's tree shapes\n",
        f"{name}; {str(DTYPE).removeprefix('torch.')}, head_dim {HEAD_DIM}; one layer of one decoding step "
        "over a tree, storing the step's keys and values included. `whole paths` is PyTorch's attention "
        "without sharing, `cascade` FlashInfer's (- where it does not fit or is not installed).\n",
        table(header, rows),
        "",
        *([f"{left_out} more were left out: the time was up.\n"] if left_out else []),
        f"## Whole runs\n\n{runs}\n",
        *(f"- {fact}: {value}" for fact, value in machine().items()),
    ]
    return "\n".join(lines) + "\n"


def _main(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the report: OUT.md")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=180, help="no new shape is begun after that")
    parser.add_argument("--model", default="smollm2-135m", help="of whole runs; as LLM takes it")
    parser.add_argument("--leaves", type=int, default=1024, help="maximum number of leaves of a tree")
    parser.add_argument(
        "--heads", type=int, choices=range(len(HEADS)), help="only these of tree_shapes.HEADS"
    )
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError.of(
            "--device", got=args.device, expected="a device of this machine", remedy="see nvidia-smi"
        )
    torch.manual_seed(0)
    started, rows = time.perf_counter(), []
    chosen = HEADS if args.heads is None else HEADS[args.heads : args.heads + 1]
    work = [(shape.shrunk(args.leaves), heads) for heads in chosen for shape in FAST_TREE]
    for shape, heads in work:
        if time.perf_counter() - started > args.seconds:
            break
        rows.append(measure(shape, heads, device, args.repeats))
    runs = "Not measured: no GPU."
    if device.type == "cuda":
        header = [f"{args.model}, 8 x 32 completions of 128 tokens", "tokens/s", "seconds"]
        runs = table(header, whole_runs(args.model, device))
    text = report(rows, runs, device, len(work) - len(rows))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    return guarded("gpu_bench", _main, argv)


if __name__ == "__main__":
    sys.exit(main())
