"""Linear layers and attention by every instruction level, as a share of what that level's instructions reach.

    python scripts/bench/level_bench.py --out docs/bench/levels

The peak of a level and dtype is that of the instruction that multiplies there, all numbers in registers, one
core (``peaks.cpp``, compiled for the run), measured before and after the level's kernels; the higher counts.
One thread, CPU seconds, the median of ``--repeats`` calls that take turns. Weights of linear layers exceed
the caches, as a model's do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attention_bench import AttentionInputs
from attention_cases import CASES, DIM, HEADS, TINY_CASES
from measuring import Company, grouped_bars, guarded, plot, table, write_report
from roof import median_seconds
from torch import nn

from treeshare.attention import make_backend
from treeshare.errors import ConfigError
from treeshare.kv import KVGeometry
from treeshare.models.linear import KernelLinear
from treeshare.native import kernel_levels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

INSTRUCTIONS = {
    "amx": ("tiles_bf16", "fma512"),
    "avx512": ("dot512", "fma512"),
    "avx512f": ("fma512", "fma512"),
    "avx2": ("fma256", "fma256"),
}
"""What multiplies bfloat16 and float32 at a level, by its name in ``peaks.cpp``. Others have no peak here, or
are served by one of these."""

SHAPES = {576: [960, 576, 3072], 1536: [576]}
"""Outputs of a layer's linear layers, by inputs: those of SmolLM2-135M."""

ROWS = (1, 8, 64, 256)


def measure(
    level: str, num_layers: int, rows: Sequence[int], repeats: int, *, is_tiny: bool
) -> list[dict[str, Any]]:
    """GFLOP/s of the process's level: a record for each kernel and dtype."""
    torch.set_num_threads(1)
    runs: list[tuple[dict[str, Any], float, Callable[[], object]]] = []
    for name, dtype in DTYPES.items():
        for num_inputs, outputs in SHAPES.items():
            layers = [
                KernelLinear(nn.Linear(num_inputs, count, bias=False, dtype=dtype).requires_grad_(False))
                for _ in range(num_layers)
                for count in outputs
            ]
            for num_rows in rows:
                x = torch.randn(num_rows, num_inputs, dtype=dtype)
                flops = 2.0 * num_rows * num_inputs * sum(outputs) * num_layers

                def multiply(x: torch.Tensor = x, layers: list[KernelLinear] = layers) -> None:
                    for layer in layers:
                        layer(x)

                runs.append(
                    (
                        {"dtype": name, "kernel": f"linear, {num_inputs} inputs, {num_rows} rows"},
                        flops,
                        multiply,
                    )
                )
        geometry = KVGeometry.uniform(num_layers=1, num_kv_heads=HEADS, head_dim=DIM, dtype=dtype)
        for case in TINY_CASES if is_tiny else CASES:
            inputs = AttentionInputs(case, dtype)
            attend = partial(inputs.attend, make_backend("native", geometry))
            runs.append(({"dtype": name, "kernel": f"attention, {case.name}"}, case.flops, attend))
    seconds = median_seconds([run for _, _, run in runs], repeats, time.process_time)
    return [
        record | {"level": level, "gflops": flops / took / 1e9}
        for (record, flops, _), took in zip(runs, seconds, strict=True)
    ]


class Peaks:
    """``peaks.cpp``, compiled.

    Args:
        folder: Where the program is put.

    Raises:
        ConfigError: If there is no C++ compiler.
    """

    def __init__(self, folder: str) -> None:
        self._program = Path(folder) / "peaks"
        source = Path(__file__).with_name("peaks.cpp")
        compiler = os.environ.get("CXX", "c++")
        try:
            subprocess.run([compiler, "-O2", "-o", self._program, source], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigError.of("CXX", got=compiler, expected="a C++ compiler, for the peaks") from error

    def of(self, level: str) -> dict[str, float]:
        """GFLOP/s of one core by dtype; nothing where no instruction is known."""
        return {
            dtype: float(
                subprocess.run([self._program, name], capture_output=True, text=True, check=True).stdout
            )
            for dtype, name in zip(DTYPES, INSTRUCTIONS.get(level, ()), strict=False)
        }


def _report(
    out: Path, records: list[dict[str, Any]], peaks: dict[str, dict[str, float]], company: Company
) -> None:
    parts = []
    for dtype in DTYPES:
        found = {(r["kernel"], r["level"]): r["gflops"] for r in records if r["dtype"] == dtype}
        rows = [["peak", *(f"{peaks[level].get(dtype, 0):.0f}" for level in peaks)]]
        for kernel in dict.fromkeys(kernel for kernel, _ in found):
            cells = []
            for level, peak in peaks.items():
                rate = found[kernel, level]
                cells.append(f"{rate:.0f} ({rate / peak[dtype]:.2f})" if dtype in peak else f"{rate:.0f}")
            rows.append([kernel, *cells])
        parts += [f"\n## {dtype}\n", table(["GFLOP/s of one core (share of peak)", *peaks], rows)]
    parts.append(f"\nCores busy with other things meanwhile: {company.measure()['others_cores']:.1f}.\n")
    shares = [
        (
            f"{r['dtype']}\n{r['kernel']}".replace(", ", ",\n"),
            r["level"],
            r["gflops"] / peaks[r["level"]][r["dtype"]],
        )
        for r in records
        if r["dtype"] in peaks[r["level"]] and ("256 rows" in r["kernel"] or "2048" in r["kernel"])
    ]
    names = list(dict.fromkeys(name for name, _, _ in shares))
    bars: dict[str, Sequence[float]] = {
        level: [next((share for n, at, share in shares if (n, at) == (name, level)), 0.0) for name in names]
        for level in peaks
    }
    plot(out, lambda axes: grouped_bars(axes, names, bars, "share of the level's peak"), size=(13, 5))
    body = "\n".join(
        ["One thread; the peak is that of the instruction that multiplies, in registers.", *parts]
    )
    write_report(
        out, title="Kernels by instruction level", body=body, records={"rates": records, "peaks": peaks}
    )


def _main(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="results: OUT.md, OUT.png, OUT.json")
    parser.add_argument(
        "--levels", nargs="+", default=[name for name in kernel_levels() if name in INSTRUCTIONS]
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="small sizes: shows that it runs")
    parser.add_argument("--here", action="store_true", help="measure in this process and print JSON")
    args = parser.parse_args(argv)
    if args.here:
        layers, rows = (1, (1, 9)) if args.tiny else (10, ROWS)
        print(json.dumps(measure(args.levels[0], layers, rows, args.repeats, is_tiny=args.tiny)))
        return
    company, records = Company(), []
    peaks: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        machine = Peaks(folder)
        for level in args.levels:
            words = [sys.executable, __file__, "--here", "--out", str(args.out), "--levels", level]
            words += ["--repeats", str(args.repeats), *["--tiny"] * args.tiny]
            environment = {**os.environ, "TREESHARE_KERNELS": level, "OMP_NUM_THREADS": "1"}
            before = machine.of(level)
            done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"level_bench: level {level}: {done.stderr.strip().splitlines()[-1]}")
            records += json.loads(done.stdout.splitlines()[-1])
            after = machine.of(level)
            peaks[level] = {dtype: max(before[dtype], after[dtype]) for dtype in before}
            print(f"{level}: done", file=sys.stderr, flush=True)
    _report(args.out, records, peaks, company)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    return guarded("level_bench", _main, argv)


if __name__ == "__main__":
    sys.exit(main())
