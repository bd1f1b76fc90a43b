"""Options that control how completions are sampled and when they end."""

from pathlib import Path
from typing import Annotated, Any

import typer

from treeshare.errors import ConfigError, one_line


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
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p", help="Sample from tokens at least this fraction as likely as the most likely one."
    ),
]
PresencePenalty = Annotated[
    float,
    typer.Option(
        "--presence-penalty",
        help="Number to subtract from the logits of tokens that were generated before; -2 to 2.",
    ),
]
FrequencyPenalty = Annotated[
    float,
    typer.Option(
        "--frequency-penalty", help="The same, once for each time that a token was generated; -2 to 2."
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        help="Above 1, tokens of the prompt and the completion become less likely; 1 changes nothing.",
    ),
]
StopTokenIds = Annotated[
    list[int] | None,
    typer.Option("--stop-token-id", min=0, help="A token that ends a completion; repeatable."),
]
MinTokens = Annotated[
    int,
    typer.Option("--min-tokens", min=0, help="Minimum number of tokens of a completion; 0 for none."),
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="Stop string, instead of the task's; repeatable.")
]
JsonSchema = Annotated[
    Path | None,
    typer.Option("--json-schema", help="Completions are JSON that fits the schema in this file."),
]
Regex = Annotated[
    str | None, typer.Option("--regex", help="The whole completion matches this regular expression.")
]
Choice = Annotated[
    list[str] | None, typer.Option("--choice", help="Completions are one of these texts; repeatable.")
]
LogitBias = Annotated[
    str | None,
    typer.Option(
        "--logit-bias", metavar="JSON", help="Numbers to add to the logits of tokens, e.g. '{\"50\": -100}'."
    ),
]
AllowedTokenIds = Annotated[
    list[int] | None,
    typer.Option("--allowed-token-id", min=0, help="Only these tokens are drawn; repeatable."),
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
        help="Maximum number of tokens of a chat model's reasoning; then its end is forced.",
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
