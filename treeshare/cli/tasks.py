"""``treeshare tasks``."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from treeshare.cli import options
from treeshare.cli.outputs import write_json

if TYPE_CHECKING:
    from treeshare.evals.problem import Task


def tasks(
    name: Annotated[str | None, typer.Argument(help="A task, or your own as FILE.py:CLASS.")] = None,
    json_out: options.JsonFile = None,
) -> None:
    """List the tasks: problems, source, licence, metric, whether code is run; or say all of one task."""
    from treeshare.tasks.registry import get_task, task_names

    names = task_names() if name is None else [name]
    entries = [_entry(each, get_task(each)) for each in names]
    print(_table(entries) if name is None else _page(entries[0]))
    if json_out is not None:
        write_json(json_out, {"tasks": entries})


def _entry(name: str, task: "Task") -> dict[str, Any]:
    card = task.card
    about = (type(task).__doc__ or "").strip().partition("\n")[0]
    return {
        "name": name,
        "about": about,
        "problems": card.size if card else None,
        "source": card.source if card else None,
        "licence": card.licence if card else None,
        "metric": card.metric if card else "pass@k",
        "runs_code": task.needs_sandbox,
        "shots": task.num_shots,
        "chat_shots": task.num_shots if task.chat_num_shots is None else task.chat_num_shots,
        "stop": list(task.stop),
        "max_tokens": task.max_tokens,
        "timeout_s": task.timeout_s if task.needs_sandbox else None,
        "options": dict(task.options),
        "page": _page_of(task),
    }


def _page_of(task: "Task") -> str | None:
    package, _, module = type(task).__module__.rpartition(".")
    return f"tasks/{module}.md" if package == "treeshare.tasks" else None


def _table(entries: list[dict[str, Any]]) -> str:
    rows = [("task", "problems", "source", "licence", "metric", "runs code")]
    rows += [
        (
            entry["name"],
            *(str(entry[field] or "-") for field in ("problems", "source", "licence")),
            entry["metric"],
            _yes(entry["runs_code"]),
        )
        for entry in entries
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, "", "treeshare tasks TASK shows one in detail; your own tasks: FILE.py:CLASS"])


def _page(entry: dict[str, Any]) -> str:
    unknown = "not said"
    seconds = (
        ""
        if entry["timeout_s"] is None
        else f", {entry['timeout_s']:g} s each unless --timeout says otherwise"
    )
    facts = {
        "problems": entry["problems"] or unknown,
        "source": entry["source"] or unknown,
        "licence": entry["licence"] or unknown,
        "metric": entry["metric"],
        "runs code": _yes(entry["runs_code"]) + seconds,
        "worked examples": f"{entry['shots']}, with --chat {entry['chat_shots']}",
        "stop strings": " ".join(map(repr, entry["stop"])) or "none",
        "maximum number of tokens": entry["max_tokens"],
        **{f"--task-option {option}": what for option, what in entry["options"].items()},
        **({"page": entry["page"]} if entry["page"] else {}),
    }
    width = max(map(len, facts))
    return "\n".join(
        [
            f"{entry['name']}: {entry['about']}",
            *(f"  {key.ljust(width)}  {text}" for key, text in facts.items()),
        ]
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"
