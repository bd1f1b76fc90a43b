"""``treeshare tree``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from treeshare.cli import options
from treeshare.cli.inputs import encode_prompts, load_task
from treeshare.cli.outputs import check_output, write_json, write_output
from treeshare.errors import ConfigError


def tree(
    workload: Annotated[Path | None, typer.Argument(help="Workload file; or give --task.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Task, e.g. humaneval.")] = None,
    data: options.DataFile = None,
    limit: options.Limit = None,
    shots: options.Shots = None,
    shot_choice: options.ShotChoice = "fixed",
    shot_data: options.ShotData = None,
    chat: options.Chat = False,
    seed: options.Seed = 0,
    n: options.NumCompletions = 1,
    model: options.Model = options.DEFAULT_MODEL,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", callback=check_output, help="Write the tree as networkx node-link JSON."),
    ] = None,
    graphml_out: Annotated[
        Path | None, typer.Option("--graphml", callback=check_output, help="Write the tree as GraphML.")
    ] = None,
) -> None:
    """Draw the tree of a task's or a workload's prompts; loads no weights."""
    if (workload is None) == (task is None):
        raise ConfigError("tree: got both or neither, expected a workload file or --task")
    from treeshare.engine.workload import Workload
    from treeshare.evals.prompts import PromptOptions, build_prompts, cost_table, shot_costs
    from treeshare.models import describe_model
    from treeshare.tree import PromptTree, render_tree

    counts: int | list[int] = n
    if workload is not None:
        problems = Workload.read(workload).problems
        prompts = [problem.prompt_ids for problem in problems]
        counts = [problem.samples for problem in problems]
        description = describe_model(model)
    else:
        chosen, texts = load_task(task or "", data, limit)
        prompting = PromptOptions(
            num_shots=shots, shot_choice=shot_choice, seed=seed, chat=chat, data=data, shot_data=shot_data
        )
        built = build_prompts(chosen, texts, prompting)
        description = describe_model(model)
        prompts = encode_prompts(chosen, built, description, chat=chat)
        if prompting.record(chosen)["shots"]:
            costs = shot_costs(chosen, texts, prompting, description.tokenizer, n)
            print(cost_table(costs), end="\n\n")
    found = PromptTree.from_prompts(prompts)
    bytes_per_token = description.geometry.bytes_per_token
    print(render_tree(found, counts, decode=description.decode, bytes_per_token=bytes_per_token))
    if json_out is not None:
        write_json(json_out, node_link(found), indent=None)  # one line per token would be long
    if graphml_out is not None:
        write_output(graphml_out, graphml(found))


def node_link(tree: Any) -> Any:  # noqa: ANN401
    """A prompt tree as networkx's node-link data; ``PromptTree.from_networkx`` takes its graph back."""
    import networkx as nx

    return nx.node_link_data(tree.to_networkx(), edges="edges")


def graphml(tree: Any) -> bytes:  # noqa: ANN401
    """A prompt tree as GraphML; token ids and prompts are JSON text there, GraphML has no lists."""
    import networkx as nx

    graph = tree.to_networkx()
    for attributes in graph.nodes.values():
        for name in ("token_ids", "prompts"):
            attributes[name] = json.dumps(attributes[name])
    return "\n".join(nx.generate_graphml(graph)).encode() + b"\n"
