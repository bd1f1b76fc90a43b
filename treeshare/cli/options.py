"""Options of more than one command."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from treeshare.cli.outputs import check_output
from treeshare.errors import ConfigError, one_line

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


def parse_structured(
    schema: Path | None, regex: str | None, choice: list[str] | None
) -> dict[str, Any] | None:
    """What completions must be, of ``--json-schema``, ``--regex`` and ``--choice``; None without any.

    Raises:
        ConfigError: If more than one is given, or the file is no JSON schema.
        DataError: If the file cannot be read.
    """
    given: dict[str, Any] = {"json": schema, "regex": regex, "choice": choice or None}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise ConfigError("--json-schema, --regex, --choice: got more than one; give one of them")
    if schema is not None:
        from treeshare.files import read_file
        from treeshare.sampling.structured import MAX_CHARS

        content = read_file(schema, "JSON schema", max_bytes=4 * MAX_CHARS)
        try:
            given["json"] = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"--json-schema: {one_line(schema)}: not UTF-8: {one_line(error)}") from error
    return given or None


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
    str | None,
    typer.Option("--judge", help="With --task qa: exact (default), number, math, regex or choice."),
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
    typer.Option("--shot-choice", help="How to choose worked examples; random depends on --seed."),
]
ShotData = Annotated[Path | None, typer.Option("--shot-data", help="Read worked examples from this file.")]
Chat = Annotated[bool, typer.Option("--chat", help="Put each whole prompt into the model's chat template.")]
ChatTemplateKwargs = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs",
        metavar="JSON",
        help="What the chat template is given beside the messages, e.g. '{\"enable_thinking\": false}'.",
    ),
]
NumCompletions = Annotated[int, typer.Option("-n", min=1, max=100_000, help="Completions per problem.")]
Model = Annotated[
    str, typer.Option("--model", help="Embedded model's name, directory, .gguf file or hub id.")
]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, bfloat16 or float32.")]
Quantization = Annotated[
    str | None,
    typer.Option(
        "--quantization",
        help="int8: linear layers in codes of 8 bits; completions are then the same on every CPU.",
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
        help="Whose sampling parameters hold where none is given: the model's own, nobody's, a folder's.",
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="Number of torch threads.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the run.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        help="0 always takes the most likely token; the model's own by default, else 0.8.",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", help="Sample from the most likely tokens with this total probability."),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", help="Sample from this many most likely tokens; 0 means all.")
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="Stop string, instead of the task's; repeatable.")
]
JsonSchema = Annotated[
    Path | None,
    typer.Option("--json-schema", help="Completions are JSON that fits the JSON schema in this file."),
]
Regex = Annotated[
    str | None, typer.Option("--regex", help="Completions match this regular expression, whole.")
]
Choice = Annotated[
    list[str] | None, typer.Option("--choice", help="Completions are one of these texts; repeatable.")
]
LogitBias = Annotated[
    str | None,
    typer.Option(
        "--logit-bias", metavar="JSON", help="What is added to tokens' logits, e.g. '{\"50\": -100}'."
    ),
]
AllowedTokenIds = Annotated[
    list[int] | None,
    typer.Option("--allowed-token-id", min=0, help="Only such tokens are drawn; repeatable."),
]
BadWord = Annotated[
    list[str] | None, typer.Option("--bad-word", help="A text that is not generated; repeatable.")
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", min=1, help="Maximum number of tokens of a completion; by default the task's."
    ),
]
ThinkingTokenBudget = Annotated[
    int | None,
    typer.Option(
        "--thinking-token-budget",
        min=0,
        help="Maximum tokens of a chat model's reasoning; then its end is forced.",
    ),
]
ReasoningParser = Annotated[
    str,
    typer.Option(
        "--reasoning-parser",
        help="How the model marks its reasoning: auto, none, a name such as qwen3, or two tags.",
    ),
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        "--logprobs",
        min=0,
        max=64,
        help="Record the log-probabilities of each generated token and of the N most likely tokens.",
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
