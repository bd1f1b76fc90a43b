"""What the benchmark scripts share: the machine, commands that run workloads, tables and plots."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeshare.errors import ConfigError, DataError, TreeshareError
from treeshare.installation import how_to_add

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ROOT = Path(__file__).resolve().parents[2]

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")
"""Of the processor's flags, those that decide how fast matmuls are."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a comparison: a command that runs workload files.

    Attributes:
        name: In tables and plots.
        command: Words, to which the workload files are added.
        json_option: The command writes its figures, a JSON list, to the file named after this option; None
            when it prints one JSON object per line. Each object has ``tok_s``; they come in the order of the
            files.
        folder: Where the command runs.
    """

    name: str
    command: tuple[str, ...]
    json_option: str | None = None
    folder: Path | None = None

    @classmethod
    def ours(cls, name: str, model: str, *options: str) -> Series:
        """``treeshare bench`` in a process of its own, like every peer."""
        words = (sys.executable, "-m", "treeshare.cli", "bench", "--model", model, *options)
        return cls(name=name, command=words, json_option="--json", folder=ROOT)

    @classmethod
    def peer(cls, text: str) -> Series:
        """From ``NAME=COMMAND``.

        Raises:
            ConfigError: If it is not of that form.
        """
        name, separator, command = text.partition("=")
        if not (name and separator and command.strip()):
            raise ConfigError.of("--peer", got=text, expected="NAME=COMMAND")
        return cls(name=name, command=tuple(shlex.split(command)))

    def run(self, workloads: Sequence[Path]) -> list[dict[str, Any]]:
        """Run the workloads once, in one process; figures in their order.

        Raises:
            DataError: If the command fails or does not report every workload.
        """
        company = Company()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "figures.json"
            words = [*self.command, *(str(path.absolute()) for path in workloads)]
            if self.json_option:
                words += [self.json_option, str(out)]
            try:
                done = subprocess.run(words, capture_output=True, text=True, cwd=self.folder, check=False)
            except OSError as error:
                raise DataError(f"{self.name}: cannot run {words[0]}: {error.strerror}") from error
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise DataError(f"{self.name}: status {done.returncode}: {last}")
            figures = json.loads(out.read_text()) if self.json_option else _objects(done.stdout)
        if len(figures) != len(workloads):
            raise DataError(f"{self.name}: reported {len(figures)} of {len(workloads)} workloads")
        return [figure | company.measure() for figure in figures]


class Company:
    """How busy the machine was with other things since this was made."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._started = time.perf_counter(), _busy_s(), sum(os.times()[:4])

    def measure(self) -> dict[str, float]:
        """``load_average`` before, and ``others_cores``: cores that others kept busy meanwhile."""
        elapsed, busy, own = (
            now - then
            for now, then in zip(
                (time.perf_counter(), _busy_s(), sum(os.times()[:4])), self._started, strict=True
            )
        )
        others = max(0.0, (busy - own) / elapsed)
        return {"load_average": round(self._load, 2), "others_cores": round(others, 2)}


def _busy_s() -> float:
    """Processor seconds of the whole machine that were not idle; 0 where the system does not say."""
    fields = [float(word) for word in _read("/proc/stat").partition("\n")[0].split()[1:8]]
    return (sum(fields) - sum(fields[3:5])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _objects(text: str) -> list[dict[str, Any]]:
    """The lines that are JSON objects with ``tok_s``; engines print much else."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if "tok_s" in value:
                found.append(value)
    return found


def run_rounds(
    series: Sequence[Series], workloads: Sequence[Path], rounds: int, *, out: Path, append: bool
) -> list[dict[str, Any]]:
    """Run every series on all workloads, then all of them again: drift of the machine hits all alike.

    Args:
        series: What to compare.
        workloads: Files.
        rounds: How often.
        out: ``OUT.json`` is written after each series: what is measured survives an interrupt.
        append: Begin with the records that it has now.

    Returns:
        One flat record per series, workload and round: ``series``, ``workload`` (the file's name),
        what ``Company`` measured, ``at``, and what the command reported.
    """
    records = _earlier(out) if append else []
    for number in range(rounds):
        for line in series:
            at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            print(f"round {number + 1} of {rounds}: {line.name} ...", file=sys.stderr, flush=True)
            for path, figures in zip(workloads, line.run(workloads), strict=True):
                records.append({**figures, "series": line.name, "workload": path.stem, "at": at})
                print(f"  {path.stem}: {figures['tok_s']} tokens/s", file=sys.stderr, flush=True)
            _write(out, ".json", json.dumps({"records": records}))
    return records


def _earlier(out: Path) -> list[dict[str, Any]]:
    """The records of ``OUT.json``; none where there is no such file."""
    path = out.with_name(out.name + ".json")
    if not path.exists():
        return []
    try:
        records: list[dict[str, Any]] = json.loads(path.read_text())["records"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"--append: {path} is not a result of this script") from error
    return records


def _write(out: Path, suffix: str, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_name(out.name + suffix).write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"--out: cannot write {out}: {error.strerror}") from error


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median, and lowest to highest where there are several."""
    if not values:
        return ""
    median = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def values_of(records: Iterable[dict[str, Any]], key: str, **where: object) -> list[float]:
    """``key`` of the records that match ``where``."""
    return [
        float(record[key])
        for record in records
        if key in record and all(record.get(name) == value for name, value in where.items())
    ]


def machine() -> dict[str, str]:
    """Processor, cores, memory and versions, as they are now."""
    info = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*: (.*)$", info, re.MULTILINE)).split())
    memory = re.search(r"MemTotal:\s*(\d+)", _read("/proc/meminfo"))
    versions = [
        f"{name} {metadata.version(name)}" for name in ("treeshare", "torch", "transformers", "numpy")
    ]
    return {
        "processor": f"{model[1] if model else platform.processor()}, {len(os.sched_getaffinity(0))} cores",
        "instructions": " ".join(flag for flag in CPU_FLAGS if flag in flags),
        "memory": f"{int(memory[1]) / 2**20:.0f} GiB" if memory else "unknown",
        "versions": ", ".join([*versions, f"Python {platform.python_version()}"]),
        "commit": _commit(),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") or "not a checkout"
    return commit + (" with uncommitted changes" if git("status", "--porcelain", "treeshare") else "")


def shown_command() -> str:
    """This command line; absolute paths are shortened to their last part."""
    words = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return "python scripts/bench/" + re.sub(r"(?<![\w.])/(?:[^\s/:=']+/)+", "", words)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are figures."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|--:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def write_report(out: Path, *, title: str, body: str, records: object) -> None:
    """Write ``OUT.json`` and ``OUT.md``: the table, its plot, and what it takes to judge and repeat it."""
    facts = machine()
    lines = [f"# {title}", "", body, "", f"![{title}]({out.name}.png)", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [f"- measured: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"]
    lines += ["- command (paths shortened):", "", f"      {shown_command()}"]
    text = "\n".join(lines) + "\n"
    _write(out, ".md", text)
    content = {"title": title, "machine": facts, "command": shown_command(), "records": records}
    _write(out, ".json", json.dumps(content, indent=1) + "\n")
    print(text)


def plot(out: Path, draw: Callable[[Any], None], *, size: tuple[float, float] = (8, 4.5)) -> None:
    """Draw ``OUT.png``: ``draw`` gets matplotlib axes.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"matplotlib: not installed, and the plot needs it; {how_to_add('plots')}"
        ) from error
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out.with_name(out.name + ".png"), dpi=120)


def grouped_bars(axes: Any, groups: Sequence[str], bars: dict[str, Sequence[float]], label: str) -> None:  # noqa: ANN401
    """Bars side by side for each group; a series has one value per group."""
    width = 0.8 / len(bars)
    for index, (name, values) in enumerate(bars.items()):
        places = [group + (index - (len(bars) - 1) / 2) * width for group in range(len(groups))]
        axes.bar_label(axes.bar(places, values, width, label=name), fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(groups)), groups, fontsize=8)
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=8)


def guarded(name: str, main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None) -> int:
    """Run a script's ``main``; a user's mistake is one line on stderr and status 2."""
    try:
        main(argv)
    except TreeshareError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0
