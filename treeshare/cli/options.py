"""Options of more than one command."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from treeshare.cli.outputs import check_output
from treeshare.config import Sharing as SharingName
from treeshare.errors import ConfigError

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def parse_bytes(option: str, text: str | None) -> int | None:
    """Parse a number of bytes with or without a unit: ``512MiB``, ``1.5 GiB``, ``1000000``.

    Raises:
        ConfigError: If ``text`` is not such a number or is less than 1 byte; the message names ``option``.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([a-z]*)", text.lower())
    unit = _UNITS.get(match[2]) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise ConfigError.of(option, got=text, expected="a number of bytes, or of KiB, MiB, GiB or TiB")
    return int(float(match[1]) * unit)


def parse_object(option: str, text: str | None) -> dict[str, Any] | None:
    """Parse an option's JSON object; None without text.

    Raises:
        ConfigError: If ``text`` is something else; the message names ``option``.
    """
    if text is None:
        return None
    from treeshare.files import parse_json

    try:
        values = parse_json(text.encode())
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ConfigError.of(option, got=text, expected="a JSON object")
    return values


def parse_template_kwargs(text: str | None) -> dict[str, Any] | None:
    """Parse the JSON object of ``--chat-template-kwargs``; None without text.

    Raises:
        ConfigError: If ``text`` is something else.
    """
    return parse_object("--chat-template-kwargs", text)


def parse_task_options(texts: list[str] | None) -> dict[str, str]:
    """Parse ``--task-option NAME=VALUE``, given any number of times.

    Raises:
        ConfigError: If one has another form, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts or []:
        name, sign, value = text.partition("=")
        if not name or not sign or not value or name in found:
            raise ConfigError.of("--task-option", got=text, expected="NAME=VALUE, each name once")
        found[name] = value
    return found


def with_qa_options(
    task: str | None,
    found: dict[str, str],
    prompt_field: str | None,
    answer_field: str | None,
    judge: str | None,
) -> dict[str, str]:
    """A task's options with those of ``--task qa`` that have their own names on the command line.

    Raises:
        ConfigError: If they are given to another task, or one is given twice.
    """
    given = {"prompt_field": prompt_field, "answer_field": answer_field, "judge": judge}
    named = {name: value for name, value in given.items() if value is not None}
    for name in named:
        option = "--" + name.replace("_", "-")
        if task != "qa":
            raise ConfigError(
                f"{option}: got it with --task {task}, expected --task qa, the only task with it"
            )
        if name in found:
            raise ConfigError(f"{option}: got it twice, also as --task-option {name}; give one")
    return found | named


def one_model(command: str, argument: str | None, option: str | None) -> str | None:
    """The model of a command that takes MODEL, and --model as all others do.

    Raises:
        ConfigError: If both are given.
    """
    if argument is not None and option is not None:
        raise ConfigError(f"{command}: got MODEL and --model; give one of them")
    return option if argument is None else argument


DEFAULT_MODEL = "smollm2-135m"

TaskName = Annotated[str, typer.Option("--task", help="Task, e.g. humaneval, or your own as FILE.py:CLASS.")]
DataFile = Annotated[Path | None, typer.Option("--data", help="Read the task's data from this file.")]
TaskOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--task-option",
        metavar="NAME=VALUE",
        help="An option of the task, e.g. difficulty=easy; `treeshare tasks TASK` lists them; repeatable.",
    ),
]
PromptField = Annotated[
    str | None,
    typer.Option(
        "--prompt-field", help="With --task qa: the data's field with the prompt; question by default."
    ),
]
AnswerField = Annotated[
    str | None,
    typer.Option(
        "--answer-field", help="With --task qa: the data's field with the answer; answer by default."
    ),
]
Judge = Annotated[
    Literal["exact", "number", "math", "regex", "choice"] | None,
    typer.Option("--judge", help="With --task qa: how answers are compared; by default exact, as text."),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first N problems.")]
Shots = Annotated[
    int | None,
    typer.Option(
        "--shots", min=0, help="Worked examples in each prompt; by default as many as the task uses."
    ),
]
ShotChoice = Annotated[
    Literal["fixed", "random", "nearest", "nearest-shared"],
    typer.Option(
        "--shot-choice",
        help="Which worked examples: fixed, the same for all problems; random, drawn by --seed; nearest, "
        "those most similar to each problem; nearest-shared, the same, ordered to share longer prefixes.",
    ),
]
ShotData = Annotated[Path | None, typer.Option("--shot-data", help="Read worked examples from this file.")]
Chat = Annotated[
    bool, typer.Option("--chat", help="Make each prompt a user message in the model's chat template.")
]
ChatTemplateKwargs = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs",
        metavar="JSON",
        help="Variables to pass to the chat template, e.g. '{\"enable_thinking\": false}'.",
    ),
]
NumCompletions = Annotated[
    int, typer.Option("-n", "--n", min=1, max=100_000, help="Completions per problem.")
]
Model = Annotated[
    str, typer.Option("--model", help="Embedded model's name, directory, .gguf file or hub id.")
]
SameModel = Annotated[str | None, typer.Option("--model", help="The same as MODEL.")]
Dtype = Annotated[
    Literal["auto", "bfloat16", "float32"],
    typer.Option("--dtype", help="Number format of weights, KV and computation; auto takes the model's own."),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda|cuda:N",
        help="Where the model runs; auto takes a CUDA device where there is one and Triton is installed.",
    ),
]
Sharing = Annotated[
    SharingName,
    typer.Option(
        "--sharing",
        help="What prompts share: tree, every common prefix; one-level, only what all have in common; "
        "none, nothing.",
    ),
]
Quantization = Annotated[
    Literal["int8"] | None,
    typer.Option(
        "--quantization",
        help="int8: quantise linear layers to 8 bits; completions are then the same on every CPU.",
    ),
]
MaxModelLen = Annotated[
    int | None,
    typer.Option(
        "--max-model-len",
        min=2,
        help="Maximum tokens of a prompt and its completion; by default the model's number of positions.",
    ),
]
Lora = Annotated[
    str | None,
    typer.Option("--lora", metavar="FOLDER", help="PEFT adapter that is merged into the weights."),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a model of the hub.")
]
GenerationConfig = Annotated[
    str,
    typer.Option(
        "--generation-config",
        metavar="auto|vllm|FOLDER",
        help="Default sampling parameters: auto, the model's own; vllm, none; or those of a folder.",
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="Number of torch threads.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the run.")]
ReasoningParser = Annotated[
    str,
    typer.Option(
        "--reasoning-parser",
        help="How the model marks its reasoning: auto, none, a name such as qwen3, or two tags.",
    ),
]
MaxNumSeqs = Annotated[
    int,
    typer.Option("--max-num-seqs", min=1, max=8192, help="Maximum number of completions decoded at once."),
]
KvBudget = Annotated[
    str | None,
    typer.Option(
        "--kv-budget",
        metavar="BYTES",
        help="Maximum bytes of KV held at once, e.g. 512MiB; by default half of the free memory.",
    ),
]
StopProblemAfter = Annotated[
    str | None,
    typer.Option(
        "--stop-problem-after",
        metavar="RULE",
        help="End a problem early: first-success (a completion passes) or margin=N (an answer leads by N).",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Use several processes: of the Ray cluster at ADDRESS, or else of a new one on this machine.",
    ),
]
RayWorkers = Annotated[
    int | None,
    typer.Option(
        "--ray-workers", min=1, max=10_000, help="Number of processes; by default one per node, at least two."
    ),
]
RayThreads = Annotated[
    int | None,
    typer.Option(
        "--ray-threads",
        min=1,
        max=1024,
        help="Threads per process; by default processors of a node divided by its processes.",
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="Run directory made by `treeshare sample`.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", callback=check_output, help="Write the results to this file.")
]
