"""Record the outputs of a fixed set of runs on any commit, and compare two records to the last bit.

    python scripts/record_outputs.py record --checkout FOLDER --cache FOLDER --out A.json
    python scripts/record_outputs.py compare A.json B.json

To show that a change leaves every output as it was, record the commit before and the commit after on one
machine with one ``--cache``: the figures by which small nodes are folded are measured once and kept there.
The checkout needs its compiled library. ``TREESHARE_KERNELS`` is passed on; threads are fixed.

``record`` runs each run in a process of its own (``--only`` takes some, into the same file if it is there).
The file holds the values: token ids, texts, log-probabilities as hexadecimal floats, steps; and a SHA-256 of
each run. Times and identifiers are left out. ``compare`` ends with status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RUNS = {
    "w1s-bfloat16": "the workload W1s on the real model",
    "w1s-float32": "the same in float32",
    "humaneval": "treeshare tree and sample, 8 problems with 8 completions",
    "architectures": "all tiny architectures in both dtypes",
    "sampling": "every sampling parameter",
    "engine": "the engine's options: sharing, attention off, budgets, kept nodes",
    "backends": "the attention backends of the CPU",
    "triton": "the Triton backend, interpreted",
    "scores": "LLM.score",
    "search": "LLM.search and beam_search",
    "weights": "update_weights",
    "chat": "LLM.chat",
    "arrivals": "AsyncLLM, requests between steps",
    "measured-arrivals": "the same on the real model, grafted by measured costs",
    "lm-eval": "tasks of lm-eval",
    "inspect": "an evaluation by Inspect",
    "server": "answers of treeshare serve",
    "batch": "answers of treeshare batch",
}

WORKLOAD = Path("shared/bench/W1s_small.json")
MAX_SHOWN_ITEMS = 8


class RecordError(Exception):
    """What the user has to change, in one line."""


def record(args: argparse.Namespace) -> int:
    """Run every run on a checkout and write what came out; 1 if one failed."""
    checkout = args.checkout.resolve()
    workload = _workload(checkout, args.workload)
    if not list((checkout / "treeshare").rglob("_kernels*.so")):
        raise RecordError(f"--checkout: {checkout} has no compiled library (_kernels*.so); build or copy it")
    found = json.loads(args.out.read_text()) if args.only and args.out.exists() else {"runs": {}}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        cache = (args.cache or Path(folder) / "cache").resolve()
        for name in args.only or RUNS:
            print(f"{name}: {RUNS[name]} ...", end=" ", file=sys.stderr, flush=True)
            run = _run_apart(name, checkout, cache, workload, Path(folder))
            failed += "error" in run
            last = "failed: " + run["error"].splitlines()[-1] if "error" in run else run["sha256"][:12]
            print(f"{run['seconds']} s, {last}", file=sys.stderr)
            found |= {"commit": _commit(checkout), "measured": _measured(cache)}
            found["kernels"] = os.environ.get("TREESHARE_KERNELS", "")
            found["runs"][name] = run
            args.out.write_text(json.dumps(found, indent=0) + "\n")
    return int(failed > 0)


def _workload(checkout: Path, given: Path | None) -> Path:
    """The workload file: as given, or below a folder around the checkout (a worktree may lie deeper)."""
    places = [given] if given else [folder / WORKLOAD for folder in checkout.parents]
    for path in places:
        if path.is_file():
            return path.resolve()
    raise RecordError(f"--workload: {places[0]} is not there; give the file {WORKLOAD.name}")


def _commit(checkout: Path) -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "HEAD") + (" and changes" if git("status", "--porcelain") else "")


def _measured(cache: Path) -> dict[str, Any]:
    """The figures that decide how trees are folded: if they differ, so may roundings."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(cache.rglob("fold_cost/*.json"))}


def _run_apart(name: str, checkout: Path, cache: Path, workload: Path, work: Path) -> dict[str, Any]:
    """Run one run in a process of its own."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    fixed = {"PYTHONPATH": str(checkout), "PYTHONHASHSEED": "0", "XDG_CACHE_HOME": str(cache)}
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub"), "TRITON_INTERPRET": "1"}
    out = work / f"{name}.json"
    words = [sys.executable, str(Path(__file__).resolve()), "run", name, "--checkout", str(checkout)]
    words += ["--work", str(work), "--workload", str(workload), "--out", str(out)]
    started = time.perf_counter()
    done = subprocess.run(
        words,
        env=os.environ | threads | fixed | offline,
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = round(time.perf_counter() - started, 1)
    if done.returncode or not out.exists():
        return {"error": done.stderr.strip()[-2000:] or f"status {done.returncode}", "seconds": seconds}
    items = json.loads(out.read_text())
    digest = hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()
    return {"sha256": digest, "seconds": seconds, "items": items}


def run(args: argparse.Namespace) -> int:
    """Run one run in this process and write its items; ``record`` calls this."""
    import treeshare

    # A checkout that is not installed: there its tasks may belong to the package, but lie beside it.
    treeshare.__path__.append(str(args.checkout))
    from recording import engine_runs, service_runs
    from recording.items import Place, exact

    functions = {
        "w1s-bfloat16": lambda place: engine_runs.w1s(place, "bfloat16"),
        "w1s-float32": lambda place: engine_runs.w1s(place, "float32"),
        "humaneval": engine_runs.humaneval,
        "architectures": engine_runs.architectures,
        "sampling": engine_runs.sampling_parameters,
        "engine": engine_runs.engine_options,
        "backends": engine_runs.backends,
        "triton": engine_runs.triton,
        "scores": engine_runs.scores,
        "search": engine_runs.search,
        "weights": engine_runs.weights,
        "chat": service_runs.chat,
        "arrivals": service_runs.arrivals,
        "measured-arrivals": service_runs.measured_arrivals,
        "lm-eval": service_runs.lm_eval,
        "inspect": service_runs.inspect,
        "server": service_runs.server,
        "batch": service_runs.batch,
    }
    items = functions[args.name](Place(checkout=args.checkout, work=args.work, workload=args.workload))
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        is_ours = name.partition(".")[0] in ("treeshare", "tasks") and path
        if is_ours and not Path(path).resolve().is_relative_to(args.checkout):
            raise RecordError(f"{name}: came from {path}, not from {args.checkout}")
    args.out.write_text(json.dumps(exact(items)))
    return 0


def compare(args: argparse.Namespace) -> int:
    """Say of each run whether two records have the same; 1 if any differs."""
    first, second = (json.loads(path.read_text()) for path in (args.first, args.second))
    print(f"{args.first}: {first['commit']}\n{args.second}: {second['commit']}")
    if first["measured"] != second["measured"]:
        print("the measured costs of nodes differ: record both with one --cache")
    names = args.only or [name for name in RUNS if name in first["runs"].keys() | second["runs"].keys()]
    differs = False
    for name in names:
        lines = list(_differences(first["runs"].get(name), second["runs"].get(name)))
        print(f"{name}: " + ("\n  ".join(["differs", *lines]) if lines else "same"))
        differs = differs or bool(lines)
    return int(differs)


def _differences(first: dict[str, Any] | None, second: dict[str, Any] | None) -> Iterator[str]:
    """What differs between two recordings of a run, one line each."""
    for which, one in (("first", first), ("second", second)):
        if one is None or "error" in one:
            yield f"the {which} " + ("has no such run" if one is None else f"failed: {one['error']}")
    if first is None or second is None or "error" in first or "error" in second:
        return
    if first["sha256"] == second["sha256"]:
        return
    items = list(dict.fromkeys([*first["items"], *second["items"]]))
    changed = [name for name in items if first["items"].get(name) != second["items"].get(name)]
    yield f"{len(changed)} of {len(items)} items"
    for name in changed[:MAX_SHOWN_ITEMS]:
        where, one, other = _first_difference(first["items"].get(name), second["items"].get(name))
        yield f"{name}{where}: {_shown(one)} != {_shown(other)}"


def _first_difference(first: Any, second: Any, where: str = "") -> tuple[str, Any, Any]:  # noqa: ANN401
    """Where two values begin to differ, and the values there."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*first, *second]):
            if first.get(key) != second.get(key):
                return _first_difference(first.get(key), second.get(key), f"{where}.{key}")
    if isinstance(first, list) and isinstance(second, list):
        for number, (one, other) in enumerate(zip(first, second, strict=False)):
            if one != other:
                return _first_difference(one, other, f"{where}[{number}]")
        return f"{where}: length", len(first), len(second)
    return where, first, second


def _shown(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, str) and "0x" in value[:3]:
        value = float.fromhex(value)
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="record | compare")
    recording = commands.add_parser("record", help=record.__doc__)
    recording.add_argument("--checkout", type=Path, required=True, help="the code to run")
    recording.add_argument("--out", type=Path, required=True, help="the record, a JSON file")
    recording.add_argument(
        "--cache", type=Path, help="XDG_CACHE_HOME of all runs; a temporary one by default"
    )
    recording.add_argument("--workload", type=Path, help=f"the file {WORKLOAD.name}")
    recording.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME", help=", ".join(RUNS))
    recording.set_defaults(function=record)
    comparing = commands.add_parser("compare", help=compare.__doc__)
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    comparing.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME", help="only these runs")
    comparing.set_defaults(function=compare)
    running = commands.add_parser("run")
    running.add_argument("name", choices=RUNS)
    for name in ("checkout", "work", "workload", "out"):
        running.add_argument(f"--{name}", type=Path, required=True)
    running.set_defaults(function=run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    args = _parser().parse_args(argv)
    try:
        return int(args.function(args))
    except (RecordError, OSError) as error:
        print(f"record_outputs: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
