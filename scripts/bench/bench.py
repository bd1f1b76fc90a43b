"""End-to-end benchmarks: ours beside other engines beside the ceiling, and how cost grows.

    python scripts/bench/bench.py compare W1.json W3.json --peer 'vLLM=python peer_vllm.py MODEL' --rounds 3
    python scripts/bench/bench.py hydragen
    python scripts/bench/bench.py sweep --over prefix --values 0,2048,4096,7936 --peer ...

``compare`` runs workload files. ``hydragen`` makes the table of Hydragen's section 4.4 (arXiv 2402.05099) on
a few-shot forest: no sharing, one level, tree, tree at the batch that the saved memory allows, ceiling.
``sweep`` changes one of prefix length, samples, depth. The ceiling is ``treeshare bench --attention off``.

Every series runs in a process of its own, all of them once, then all again (``--rounds``). A peer is a
command to which workload files are added and that prints one JSON object per workload, in order, with
``tok_s``. Results go to ``OUT.md``, ``OUT.png``, ``OUT.json``; ``--append`` keeps the rounds in ``OUT.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import Series, grouped_bars, guarded, plot, run_rounds, spread, table, values_of, write_report

from treeshare.config import require_choice
from treeshare.engine.workload import Workload
from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

OURS, CEILING = "treeshare", "ceiling (attention off)"

SWEEPS = {
    "prefix": ((0, 2048, 4096, 7936), {"problems": 1, "samples": 64}),
    "samples": ((1, 4, 16, 64, 256), {"problems": 1, "samples": 1}),
    "depth": ((1, 2, 3, 4, 5, 6), {"problems": 32, "samples": 4}),
}
"""What can be swept: the points taken by default, and the forest."""


def forest(
    *, prefix: int, own: int, problems: int, samples: int, new_tokens: int, depth: int = 1, vocabulary: int
) -> dict[str, Any]:
    """A workload of random tokens.

    Args:
        prefix: Tokens above a problem's own; at depth 1 all problems share them.
        own: Tokens below them, of each problem.
        problems: How many.
        samples: Completions of each.
        new_tokens: Tokens of each completion.
        depth: Levels that the prefix is cut into; below each, the problems are split in two.
        vocabulary: Token ids are below this.
    """
    sizes = prefix, own, problems, samples, new_tokens, depth
    draws = random.Random(repr(sizes))  # else an engine finds the last point's prefix in its cache
    levels = [prefix * (i + 1) // depth - prefix * i // depth for i in range(depth)]
    nodes: dict[tuple[int, int], list[int]] = {}
    prompts = []
    for problem in range(problems):
        ids: list[int] = []
        for level, length in enumerate(levels):
            branch = problem * 2**level // problems
            ids += nodes.setdefault((level, branch), [draws.randrange(2, vocabulary) for _ in range(length)])
        ids += [draws.randrange(2, vocabulary) for _ in range(own)]
        prompts.append({"prompt_ids": ids, "samples": samples})
    return {
        "problems": prompts,
        "new_tokens": new_tokens,
        "ignore_eos": True,
        "temperature": 0.8,
        "top_p": 1.0,
    }


def compare(args: argparse.Namespace) -> None:
    """Ours, the ceiling and the peers on workload files."""
    for path in args.workloads:
        Workload.read(path)
    series = [Series.ours(OURS, args.model), Series.ours(CEILING, args.model, "--attention", "off")]
    peers = [Series.peer(text) for text in args.peer]
    records = _measure([*series, *peers], args.workloads, args)
    names = [line.name for line in (*series, *peers)]
    workloads = list(dict.fromkeys(record["workload"] for record in records))
    body = _versus(records, names, workloads, "workload")

    def draw(axes: Any) -> None:  # noqa: ANN401
        bars = {name: [_median(records, name, workload) for workload in workloads] for name in names}
        grouped_bars(axes, workloads, bars, "generated tokens / s")

    plot(args.out, draw)
    title = "Generated tokens per second, prefill included"
    write_report(args.out, title=title, body=body, records=records)


def hydragen(args: argparse.Namespace) -> None:
    """The table of Hydragen's section 4.4 on a few-shot forest."""
    shape = {name: getattr(args, name) for name in ("prefix", "own", "problems", "samples", "new_tokens")}
    path = args.prefix + args.own + args.new_tokens
    saved = args.batch * path - (args.prefix + args.problems * args.own)
    large = max(args.batch, min(saved // args.new_tokens, args.problems * args.samples))
    batches = {
        "no sharing": (args.batch, ["--sharing", "none"]),
        "one level (only the root is shared)": (args.batch, ["--sharing", "one-level"]),
        "tree, equal batch": (args.batch, []),
        "tree, the batch the saved memory allows": (large, []),
        CEILING: (large, ["--attention", "off"]),
    }
    series = [
        Series.ours(name, args.model, "--max-num-seqs", str(batch), *options)
        for name, (batch, options) in batches.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        workload = Path(folder) / "forest.json"
        workload.write_text(json.dumps(forest(**shape, vocabulary=args.vocabulary)))
        records = _measure(series, [workload], args)
    slowest = _median(records, "no sharing", "forest")
    rows = []
    for name, (batch, options) in batches.items():
        needed = {"none": batch * path, "one-level": args.prefix + batch * (args.own + args.new_tokens)}
        tokens = needed.get(options[-1] if options else "tree", _unique_tokens(args, batch))
        peak = values_of(records, "peak_kv_bytes", series=name)
        rate = values_of(records, "tok_s", series=name)
        cells = [batch, tokens, f"{max(peak) / 2**20:.0f}", spread(rate)]
        rows.append([name, *cells, f"{statistics.median(rate) / slowest:.2f}"])
    header = ["attention", "batch", "KV tokens", "peak KV, MiB", "tokens/s", "times no sharing"]
    body = (
        f"{args.prefix} shared tokens, {args.problems} problems of {args.own} own tokens, {args.samples} "
        f"completions of {args.new_tokens} tokens each, median of rounds (lowest-highest). `KV tokens` is "
        "what a full batch needs where every row stores all that it attends to alone. Peak KV is measured; "
        "it is less for the baselines, which are spared such copies.\n\n"
    )

    def draw(axes: Any) -> None:  # noqa: ANN401
        names = list(batches)[::-1]
        bars = axes.barh(names, [_median(records, name, "forest") for name in names])
        axes.bar_label(bars, fmt="%.0f")
        axes.set_xlabel("generated tokens / s")

    plot(args.out, draw, size=(8, 3))
    title = "Hierarchical sharing, the shape of Hydragen's section 4.4"
    write_report(args.out, title=title, body=body + table(header, rows), records=records)


def _unique_tokens(args: argparse.Namespace, batch: int) -> int:
    """KV tokens of a full batch in the tree: depth-first, it spans as few problems as it can."""
    problems = -(-batch // args.samples)
    return args.prefix + problems * args.own + batch * args.new_tokens


def sweep(args: argparse.Namespace) -> None:
    """How the speed changes with one quantity."""
    default_values, default_shape = SWEEPS[args.over]
    values = args.values or default_values
    given = {name: getattr(args, name) for name in ("prefix", "own", "problems", "samples", "new_tokens")}
    shape = {"depth": 1, "vocabulary": args.vocabulary, **default_shape}
    shape |= {name: value for name, value in given.items() if value is not None}
    series = [Series.ours(OURS, args.model), Series.ours(CEILING, args.model, "--attention", "off")]
    peers = [Series.peer(text) for text in args.peer]
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for value in values:
            point = forest(**(shape | {args.over: value}))  # type: ignore[arg-type]
            paths.append(Path(folder) / f"{args.over} {value}.json")
            paths[-1].write_text(json.dumps(point))
        records = _measure([*series, *peers], paths, args)
    names = [line.name for line in (*series, *peers)]
    points = [path.stem for path in paths]
    others = ", ".join(
        f"{name} {value}" for name, value in shape.items() if name not in (args.over, "vocabulary")
    )

    def draw(axes: Any) -> None:  # noqa: ANN401
        for name in names:
            rates = [_median(records, name, point) for point in points]
            axes.plot(values, rates, marker="o", label=name)
        axes.set_xlabel(args.over)
        axes.set_ylabel("generated tokens / s")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)

    plot(args.out, draw)
    body = f"Random tokens; {others}.\n\n" + _versus(records, names, points, "point")
    write_report(args.out, title=f"Tokens per second over {args.over}", body=body, records=records)


def _versus(records: list[dict[str, Any]], names: Sequence[str], workloads: Sequence[str], what: str) -> str:
    """Rates of all series, and ours against the ceiling and the best peer; then memory and load time."""
    peers = names[2:]
    header = [what, *names, "of the ceiling", *(["times the best peer"] if peers else [])]
    rows = []
    for workload in workloads:
        cells = [spread(values_of(records, "tok_s", series=name, workload=workload)) for name in names]
        ours = _median(records, OURS, workload)
        best = max((_median(records, name, workload) for name in peers), default=0)
        rows.append([workload, *cells, f"{ours / _median(records, CEILING, workload):.2f}"])
        rows[-1] += [f"{ours / best:.2f}"] if best else []
    details = []
    for name in names:
        engine = next(
            (str(r["engine"]) for r in records if r["series"] == name and "engine" in r), "this commit"
        )
        load, memory, busy = (
            spread(values_of(records, key, series=name), digits)
            for key, digits in (("load_s", 1), ("max_rss_mib", 0), ("others_cores", 2))
        )
        details.append([name, engine, load, memory, busy])
    columns = ["series", "engine", "load, s", "peak resident memory, MiB", "cores busy with other things"]
    note = "Tokens per second: median of rounds (lowest-highest).\n\n"
    return note + table(header, rows) + "\n\n" + table(columns, details)


def _measure(
    series: Sequence[Series], workloads: Sequence[Path], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """All records; those of series that are not to run now are in ``OUT.json``.

    Raises:
        ConfigError: If ``--only`` names no series, or one has no records.
    """
    names = [line.name for line in series]
    for name in args.only:
        require_choice("--only", name, tuple(names))
    chosen = [line for line in series if line.name in (args.only or names)]
    records = run_rounds(chosen, workloads, args.rounds, out=args.out, append=args.append)
    missing = sorted(set(names) - {record["series"] for record in records})
    if missing:
        raise ConfigError(f"--only: no rounds of {', '.join(missing)} yet; run them with --append")
    return records


def _median(records: list[dict[str, Any]], name: str, workload: str) -> float:
    return statistics.median(values_of(records, "tok_s", series=name, workload=workload))


def _points(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", default="smollm2-135m", help="of ours; a peer's is in its command")
    common.add_argument("--rounds", type=int, default=3)
    common.add_argument("--out", type=Path, required=True, help="results: OUT.md, OUT.png, OUT.json")
    common.add_argument("--append", action="store_true", help="add to the rounds in OUT.json")
    common.add_argument("--only", action="append", default=[], metavar="NAME", help="run only this series")
    peers = argparse.ArgumentParser(add_help=False)
    peers.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    comparison = commands.add_parser("compare", parents=[common, peers], help=compare.__doc__)
    comparison.add_argument("workloads", nargs="+", type=Path)
    comparison.set_defaults(run=compare)

    def add_shape(command: argparse.ArgumentParser, **defaults: int | None) -> None:
        for name, value in defaults.items():
            command.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)

    hydragen_table = commands.add_parser("hydragen", parents=[common], help=hydragen.__doc__)
    add_shape(
        hydragen_table,
        prefix=2048,
        own=256,
        problems=8,
        samples=16,
        new_tokens=32,
        batch=32,
        vocabulary=40_000,
    )
    hydragen_table.set_defaults(run=hydragen)
    sweeping = commands.add_parser("sweep", parents=[common, peers], help=sweep.__doc__)
    sweeping.add_argument("--over", choices=SWEEPS, required=True)
    sweeping.add_argument("--values", type=_points, help="comma-separated")
    add_shape(sweeping, prefix=2048, own=64, problems=None, samples=None, new_tokens=32, vocabulary=40_000)
    sweeping.set_defaults(run=sweep)
    return parser


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    for name, value in vars(args).items():
        if isinstance(value, int) and value < (0 if name == "prefix" else 1) and not isinstance(value, bool):
            raise ConfigError.of(f"--{name.replace('_', '-')}", got=value, expected="a positive number")
    args.run(args)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    return guarded("bench", _main, argv)


if __name__ == "__main__":
    sys.exit(main())
