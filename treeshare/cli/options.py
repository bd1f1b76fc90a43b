"""Options that several commands share."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from treeshare.cli.outputs import check_output
from treeshare.errors import ConfigError

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def parse_bytes(option: str, text: str | None) -> int | None:
    """Bytes from an option's number with or without a unit: ``512MiB``, ``1.5 GiB``, ``1000000``.

    Raises:
        ConfigError: If it is none, or less than one byte.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([a-z]*)", text.lower())
    unit = _UNITS.get(found[2]) if found else None
    if found is None or unit is None or float(found[1]) * unit < 1:
        raise ConfigError.of(option, got=text, expected="a number of bytes, or of KiB, MiB, GiB or TiB")
    return int(float(found[1]) * unit)


DEFAULT_MODEL = "smollm2-135m"

TaskName = Annotated[str, typer.Option("--task", help="Task, e.g. humaneval; or your own, FILE.py:CLASS.")]
DataFile = Annotated[Path | None, typer.Option("--data", help="The task's data from a local file.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N problems.")]
Shots = Annotated[
    int | None, typer.Option("--shots", min=0, help="Worked examples in front; the task's number by default.")
]
ShotChoice = Annotated[
    Literal["fixed", "random", "nearest", "nearest-shared"],
    typer.Option("--shot-choice", help="Which: random is by --seed."),
]
ShotData = Annotated[Path | None, typer.Option("--shot-data", help="Take worked examples from that file.")]
Chat = Annotated[bool, typer.Option("--chat", help="Put the model's chat template around whole prompts.")]
NumCompletions = Annotated[int, typer.Option("-n", min=1, max=100_000, help="Completions per problem.")]
Model = Annotated[str, typer.Option("--model", help="Embedded name, folder, .gguf file or hub id.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, bfloat16 or float32.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="Torch threads.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Run seed.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")]
TopP = Annotated[float, typer.Option("--top-p", help="Keep the likeliest tokens of this mass.")]
TopK = Annotated[int, typer.Option("--top-k", help="Keep this many likeliest tokens; 0 keeps all.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="A stop string instead of the task's; repeatable.")
]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Most tokens of each; the task's by default.")
]
Logprobs = Annotated[
    int | None,
    typer.Option("--logprobs", min=0, max=64, help="Keep each token's log-probability, and the N likeliest."),
]
MaxNumSeqs = Annotated[
    int, typer.Option("--max-num-seqs", min=1, max=8192, help="Most completions decoded at once.")
]
KvBudget = Annotated[
    str | None,
    typer.Option(
        "--kv-budget",
        metavar="BYTES",
        help="Most bytes of KV at once, e.g. 512MiB; half of the free memory by default.",
    ),
]
StopProblemAfter = Annotated[
    str | None,
    typer.Option(
        "--stop-problem-after",
        metavar="RULE",
        help="first-success, or margin=N: an answer is ahead by N; its other completions do not come.",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Several processes by Ray: of the cluster there, or of one for this run on this machine.",
    ),
]
RayWorkers = Annotated[
    int | None,
    typer.Option("--ray-workers", min=1, max=10_000, help="Processes; one a node by default, at least two."),
]
RayThreads = Annotated[
    int | None,
    typer.Option("--ray-threads", min=1, max=1024, help="Threads of each; all of a node's, by default."),
]
RunFolder = Annotated[Path, typer.Argument(help="Run directory of `treeshare sample`.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", callback=check_output, help="Write the figures there.")
]
