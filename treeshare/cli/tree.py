"""``treeshare tree``."""

from pathlib import Path
from typing import Annotated

import typer

from treeshare.cli import options
from treeshare.cli.inputs import load_task
from treeshare.errors import ConfigError


def tree(
    workload: Annotated[Path | None, typer.Argument(help="Workload file; or give --task.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Task, e.g. humaneval.")] = None,
    data: options.DataFile = None,
    limit: options.Limit = None,
    n: options.NumCompletions = 1,
    model: options.Model = options.DEFAULT_MODEL,
) -> None:
    """Draw the tree of a task's or a workload's prompts; loads no weights."""
    from treeshare.engine.workload import Workload
    from treeshare.models import describe_model
    from treeshare.tree import PromptTree, render_tree

    description = describe_model(model)
    counts: int | list[int] = n
    if (workload is None) == (task is None):
        raise ConfigError("tree: give either a workload file or --task")
    if workload is not None:
        read = Workload.read(workload)
        prompts = [problem.prompt_ids for problem in read.problems]
        counts = [problem.samples for problem in read.problems]
    else:
        prompts = [description.encode(problem.prompt) for problem in load_task(task or "", data, limit)[1]]
    found = PromptTree.from_prompts(prompts)
    bytes_per_token = description.geometry.bytes_per_token
    print(render_tree(found, counts, decode=description.decode, bytes_per_token=bytes_per_token))
