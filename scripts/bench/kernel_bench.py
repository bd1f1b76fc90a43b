"""Each kernel against what the machine can do: matmul rate, memory bandwidth, torch's own kernels.

    python scripts/bench/kernel_bench.py --out docs/bench/kernels

The roof of a kernel is the smaller of the measured matmul rate and the rate at which the bytes that it must
move fit through the measured bandwidth. Torch's CPU flash attention and ``torch.bmm`` on the same two matmuls
are the yardsticks; both are spared the merge of a tree's parts, and flash a mask where a dense call will do.
All figures are medians of ``--repeats`` calls in this run.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attention_bench import measure_attention
from attention_cases import CASES, DIM, GROUP, HEADS, TINY_CASES
from measuring import Company, grouped_bars, guarded, plot, table, write_report
from roof import BF16, Roof, measure_roof, median_seconds
from torch import nn
from torch.nn import functional

from treeshare.errors import ConfigError
from treeshare.models.linear import KernelLinear
from treeshare.native import kernels, number_of, structs
from treeshare.sampling import SamplingParams
from treeshare.sampling.sampler import RowSpec, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


def measure_linear(num_layers: int, rows: Sequence[int], roof: Roof, repeats: int) -> list[list[str]]:
    """The matmuls of a decoder whose weights exceed the caches, by the kernel and by torch."""
    if kernels(BF16) is None:
        return []
    width, inner = HEADS * GROUP * DIM, 1536
    shapes = [(width, HEADS * (GROUP + 2) * DIM), (width, width), (width, 2 * inner), (inner, width)]
    layers = [
        nn.Linear(*shape, bias=False, dtype=BF16).requires_grad_(False)
        for _ in range(num_layers)
        for shape in shapes
    ]
    num_bytes = sum(layer.weight.nbytes for layer in layers)
    forwards = [KernelLinear(layer) for layer in layers]
    table_rows = []
    for num_rows in rows:
        inputs = {num: torch.randn(num_rows, num, dtype=BF16) for num in (width, inner)}

        def run(calls: Sequence[Callable[[Tensor], Tensor]], inputs: dict[int, Tensor] = inputs) -> None:
            for call, layer in zip(calls, layers, strict=True):
                call(inputs[layer.in_features])

        took, torch_took = median_seconds([partial(run, forwards), partial(run, layers)], repeats)
        flops = float(num_bytes * num_rows)
        table_rows.append(
            [
                str(num_rows),
                f"{took * 1e3:.1f}",
                f"{flops / took / 1e9:.0f}",
                f"{num_bytes / took / 1e9:.1f}",
                f"{roof.seconds(flops, num_bytes) / took:.2f}",
                f"{torch_took / took:.2f}",
            ]
        )
    return table_rows


def operation(
    kind: str,
    groups: int,
    width: int,
    places: Sequence[structs.Place],
    number: float = 0.0,
    linear: structs.Linear | None = None,
) -> structs.Operation:
    """An operation that rounds as transformers' model code does."""
    flags = number_of("ROUND") + number_of("ROUND_INNER")
    weights = linear or structs.Linear(None, None, 0, 0)
    return structs.Operation(number_of(kind), flags, groups, width, *places, number, weights)


def program(operations: Sequence[structs.Operation], buffers: Sequence[Tensor]) -> Callable[[], object]:
    """A function that runs operations over buffers of rows."""
    array = (structs.Operation * len(operations))(*operations)
    rows = (structs.Buffer * len(buffers))(*((b.data_ptr(), b.stride(0), False) for b in buffers))
    found = structs.Program(
        ctypes.addressof(array), len(array), ctypes.addressof(rows), len(buffers[0]), 1, None
    )
    kernel: Any = kernels(BF16)
    return lambda kept=(array, rows): kernel.treeshare_run(ctypes.byref(found))


def measure_small(rows: int, vocabulary: int, roof: Roof, repeats: int) -> list[list[str]]:
    """Norm, rotary positions, gate and sampler: bound by bandwidth, where it is not a cache's."""
    width, inner, heads = HEADS * GROUP * DIM, 1536, HEADS * (GROUP + 1)
    x, weight = torch.randn(rows, width, dtype=BF16), torch.ones(width, dtype=BF16)
    delta, out = torch.randn_like(x), torch.empty_like(x)
    gate_up, gated = torch.randn(rows, 2 * inner, dtype=BF16), torch.empty(rows, inner, dtype=BF16)
    qk, turn = torch.randn(rows, heads, DIM, dtype=BF16), torch.randn(rows, DIM, dtype=BF16)

    def turned() -> Tensor:
        low, high = qk.chunk(2, -1)
        return qk * turn[:, None] + torch.cat((-high, low), -1) * turn[:, None]

    gate, up = gate_up.chunk(2, -1)
    work: dict[str, tuple[float, Callable[[], object], Callable[[], object]]] = {}
    if kernels(BF16) is not None:
        nothing = structs.Place(number_of("NO_BUFFER"), 0, 0)
        scaled = structs.Linear(weight.data_ptr(), None, 0, 0)
        first, second, third = (structs.Place(index, 0, 0) for index in range(3))
        halves, qk_heads = structs.Place(0, inner, 0), structs.Place(0, 0, DIM)
        add = operation("ADD", 1, width, (first, second, nothing, first))
        norm = operation("RMS_NORM", 1, width, (first, nothing, nothing, third), 1e-5, scaled)
        rotate = operation("ROTATE_HALVES", heads, DIM, (qk_heads, second, second, qk_heads))
        silu = operation("SILU", 1, inner, (first, halves, nothing, second))
        work = {
            "residual + RMS norm": (
                4 * x.nbytes,
                program([add, norm], [x, delta, out]),
                lambda: functional.rms_norm(x + delta, (width,), weight, 1e-5),
            ),
            "rotary positions": (
                2 * qk.nbytes + 2 * turn.nbytes,
                program([rotate], [qk.view(rows, -1), turn]),
                turned,
            ),
            "gated activation": (
                gate_up.nbytes + gated.nbytes,
                program([silu], [gate_up, gated]),
                lambda: functional.silu(gate) * up,
            ),
        }
    logits, numbers = 4 * torch.randn(rows, vocabulary).to(BF16), np.random.default_rng(0).random(rows)
    for name, params in {
        "sampler, temperature 0.8": SamplingParams(temperature=0.8),
        "sampler, 0.8 and top-p 0.95": SamplingParams(temperature=0.8, top_p=0.95),
    }.items():
        specs = [RowSpec(params, [], [])] * rows
        work[name] = (
            logits.nbytes,
            lambda s=specs: sample(logits, s, np.arange(rows), numbers),
            lambda: torch.multinomial(torch.softmax(logits.float() / 0.8, -1), 1),
        )
    table_rows = []
    for name, (num_bytes, ours, theirs) in work.items():
        took, torch_took = median_seconds([ours, theirs], repeats)
        min_s = roof.seconds(0, num_bytes)
        table_rows.append(
            [
                name,
                f"{took * 1e3:.3f}",
                f"{num_bytes / took / 1e9:.1f}",
                f"{min_s / took:.2f}",
                f"{torch_took / took:.1f}",
            ]
        )
    return table_rows


def _main(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="results: OUT.md, OUT.png, OUT.json")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--tiny", action="store_true", help="small sizes: shows that it runs, its figures say nothing"
    )
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise ConfigError.of("--repeats", got=args.repeats, expected="a positive number")
    torch.manual_seed(0)
    company = Company()
    roof, roof_rows = measure_roof(64 if args.tiny else 2048, args.repeats)
    records = measure_attention(TINY_CASES if args.tiny else CASES, roof, args.repeats)
    linear = measure_linear(
        *((1, [1, 9]) if args.tiny else (30, [1, 8, 16, 64, 256, 512])), roof, args.repeats
    )
    small = measure_small(*((8, 512) if args.tiny else (256, 49_152)), roof, args.repeats)
    roof_rows.append(["cores busy with other things meanwhile", f"{company.measure()['others_cores']:.2f}"])
    report = {"attention": records, "linear": linear, "small": small, "roof": roof_rows}
    draw_attention(args.out, records, roof)
    write_report(
        args.out,
        title="Kernels and their roofline",
        body=report_text(roof_rows, records, linear, small),
        records=report,
    )


def report_text(
    roof: list[list[str]], records: list[dict[str, Any]], linear: list[list[str]], small: list[list[str]]
) -> str:
    """The four tables."""
    digits = {"ms": 2, "gflops": 0, "of_matmul_rate": 2, "of_roof": 2, "times_flash": 1, "of_bmm": 2}
    attention = [
        [record["case"], record["backend"], *(f"{record[key]:.{n}f}" for key, n in digits.items())]
        for record in records
    ]
    header = [
        "rows x keys",
        "backend",
        "ms",
        "GFLOP/s",
        "of matmul rate",
        "of roof",
        "times flash",
        "of `bmm`",
    ]
    columns = ["256 rows", "ms", "GB/s", "of bandwidth", "times torch"]
    parts = [
        "## The machine\n",
        table(["measured", "rate"], roof),
        f"\n## Attention, bfloat16, {HEADS} KV heads of {GROUP} query heads, head_dim {DIM}\n",
        "`of roof` is 1 where neither matmuls nor memory would allow more; `times flash` compares with "
        "torch's CPU flash attention, `of bmm` with `torch.bmm` on the same two matmuls and no softmax.\n",
        table(header, attention),
        "\n## Linear layers\n",
        "All of SmolLM2-135M's but `lm_head`, 212 MB of weights, one after the other.\n",
        table(["rows", "ms", "GFLOP/s", "GB/s of weights", "of roof", "times torch"], linear),
        "\n## Small operations\n",
        "Above 1 of the bandwidth means that the data stayed in cache. The sampler's yardstick is `softmax` "
        "and `torch.multinomial`.\n",
        table(columns, small),
    ]
    return "\n".join(parts)


def draw_attention(out: Path, records: list[dict[str, Any]], roof: Roof) -> None:
    """Bars of GFLOP/s: the backends and the yardsticks, below the matmul rate."""
    first = {record["case"]: record for record in records}
    bars = {
        name: [record["gflops"] for record in records if record["backend"] == name]
        for name in dict.fromkeys(record["backend"] for record in records)
    }
    for yardstick in ("flash", "bmm"):
        bars[f"torch {yardstick}"] = [
            record["gflops"] * record["ms"] / record[f"{yardstick}_ms"] for record in first.values()
        ]
    names = [name.replace(": ", ":\n").replace(" of ", "\nof ") for name in first]

    def draw(axes: Any) -> None:  # noqa: ANN401
        axes.axhline(
            roof.flops / 1e9, color="grey", linewidth=1, linestyle="--", label="best bfloat16 matmul"
        )
        grouped_bars(axes, names, bars, "GFLOP/s")

    plot(out, draw, size=(11, 5))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    return guarded("kernel_bench", _main, argv)


if __name__ == "__main__":
    sys.exit(main())
