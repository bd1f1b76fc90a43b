"""``treeshare tree``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treeshare.cli import options
from treeshare.cli.inputs import encode_prompts, load_task
from treeshare.cli.outputs import check_output, terminal_width, write_json
from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from treeshare.config import EngineConfig
    from treeshare.models.loading import ModelDescription
    from treeshare.tree import PromptTree


def tree(
    workload: Annotated[Path | None, typer.Argument(help="Workload file, unless --task is given.")] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Task, e.g. humaneval, or your own as FILE.py:CLASS.")
    ] = None,
    data: options.DataFile = None,
    task_option: options.TaskOptions = None,
    prompt_field: options.PromptField = None,
    answer_field: options.AnswerField = None,
    judge: options.Judge = None,
    limit: options.Limit = None,
    shots: options.Shots = None,
    shot_choice: options.ShotChoice = "fixed",
    shot_data: options.ShotData = None,
    chat: options.Chat = False,
    chat_template_kwargs: options.ChatTemplateKwargs = None,
    seed: options.Seed = 0,
    n: options.NumCompletions = 1,
    model: options.Model = options.DEFAULT_MODEL,
    plan: Annotated[
        bool, typer.Option("--plan", help="Predict the steps, time and memory of a run, without running it.")
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=1, help="For --plan: tokens of a completion; by default the maximum."),
    ] = None,
    max_num_seqs: options.MaxNumSeqs = 256,
    kv_budget: options.KvBudget = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="TFLOPS,GB/S,BYTES",
            help="For --plan: a device's speed, memory bandwidth and memory for KV, e.g. 400,3350,70GiB.",
        ),
    ] = None,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", callback=check_output, help="Write the tree as networkx node-link JSON."),
    ] = None,
    graphml_out: Annotated[
        Path | None, typer.Option("--graphml", callback=check_output, help="Write the tree as GraphML.")
    ] = None,
) -> None:
    """Draw the prompt tree of a task or a workload, without loading the model's weights."""
    if (workload is None) == (task is None):
        raise ConfigError("tree: got both or neither, expected either a workload file or --task")
    budget = options.parse_bytes("--kv-budget", kv_budget)
    if device is not None:
        _parse_device(device)
    from treeshare.config import EngineConfig
    from treeshare.engine.workload import Workload
    from treeshare.evals.prompts import PromptOptions, build_prompts, cost_table, shot_costs
    from treeshare.models import describe_model
    from treeshare.tree import PromptTree, render_tree

    counts: int | list[int] = n
    new_tokens = tokens
    if workload is not None:
        read = Workload.read(workload)
        problems, new_tokens = read.problems, tokens or read.new_tokens
        prompts = [problem.prompt_ids for problem in problems]
        counts = [problem.samples for problem in problems]
        description = describe_model(model)
    else:
        task_options = options.with_qa_options(
            task, options.parse_task_options(task_option), prompt_field, answer_field, judge
        )
        chosen, texts = load_task(task or "", data, limit, options=task_options)
        prompting = PromptOptions(
            num_shots=shots,
            shot_choice=shot_choice,
            seed=seed,
            chat=chat,
            chat_template_kwargs=options.parse_template_kwargs(chat_template_kwargs),
            data=data,
            shot_data=shot_data,
        )
        built = build_prompts(chosen, texts, prompting)
        new_tokens = tokens or chosen.max_tokens
        description = describe_model(model)
        prompts = encode_prompts(chosen, built, description, prompting)
        if prompting.record(chosen)["shots"]:
            costs = shot_costs(chosen, texts, prompting, description.tokenizer, n)
            print(cost_table(costs), end="\n\n")
    prompt_tree = PromptTree.from_prompts(prompts)
    bytes_per_token = description.geometry.bytes_per_token
    print(
        render_tree(
            prompt_tree,
            counts,
            decode=description.decode,
            bytes_per_token=bytes_per_token,
            max_width=terminal_width(),
        )
    )
    if plan:
        each = counts if isinstance(counts, list) else [counts] * len(prompts)
        config = EngineConfig(max_num_seqs=max_num_seqs, kv_budget_bytes=budget)
        print("\n" + _plan_table(prompt_tree, each, new_tokens or 1, config, description, device))
    if json_out is not None:
        write_json(json_out, node_link(prompt_tree), indent=None)  # indented, each token id takes a line
    if graphml_out is not None:
        from treeshare.files import write_output

        write_output(graphml_out, graphml(prompt_tree))


def _parse_device(text: str) -> tuple[float, float, int]:
    """Operations per second, bytes per second, bytes for KV."""
    parts = text.split(",")
    try:
        flops, speed = float(parts[0]) * 1e12, float(parts[1]) * 1e9
    except (ValueError, IndexError):
        flops = speed = 0.0
    if len(parts) != 3 or not 0 < flops < 1e24 or not 0 < speed < 1e21:
        raise ConfigError.of("--device", got=text, expected="TFLOPS,GB/S,BYTES, e.g. 400,3350,70GiB")
    return flops, speed, options.parse_bytes("--device", parts[2]) or 0


def _plan_table(
    prompt_tree: "PromptTree",
    counts: list[int],
    new_tokens: int,
    config: "EngineConfig",
    description: "ModelDescription",
    device: str | None,
) -> str:
    """What a run is predicted to take, as a table."""
    from treeshare.devices import default_kv_budget_bytes
    from treeshare.engine.fold_cost import fold_cost_here
    from treeshare.engine.plan import computed_tree
    from treeshare.engine.step_cost import DeviceCost, step_cost_here
    from treeshare.tree.forecast import Limits, StepCost, forecast

    cost: StepCost
    budget = config.kv_budget_bytes or default_kv_budget_bytes()
    if device is None:
        cost = step_cost_here(description)
    else:
        flops, speed, memory = _parse_device(device)
        budget = config.kv_budget_bytes or memory
        cost = DeviceCost.of_model(description, flops=flops, memory_bytes_s=speed)
    limits = Limits(
        max_num_seqs=config.max_num_seqs,
        kv_budget_bytes=budget,
        kept=description.geometry.kept,
        page_size=config.page_size,
    )
    config = replace(config, fold_cost=fold_cost_here(description.geometry, description.config, config))
    predicted = forecast(computed_tree(prompt_tree, config), counts, [new_tokens] * len(counts), limits, cost)
    rows = {
        "unique prompt tokens": f"{predicted.unique_tokens:,}",
        "logical prompt tokens": f"{predicted.logical_tokens:,}",
        f"new tokens, {new_tokens:,} each": f"{predicted.generated_tokens:,}",
        "waves of admission": f"{predicted.num_waves:,}",
        "decoding steps": f"{predicted.num_steps:,}",
        f"peak KV, MiB of {budget / 2**20:,.0f}": f"{predicted.peak_kv_bytes / 2**20:,.1f}",
        "prompts, s": f"{predicted.prefill_s:,.2f}",
        "decoding, s": f"{predicted.decode_s:,.2f}",
        "predicted, s": f"{predicted.wall_s:,.2f}",
        "predicted, tokens/s": f"{predicted.generated_tokens / predicted.wall_s:,.0f}",
    }
    lines = ["| plan | |", "|---|--:|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines)


def node_link(tree: Any) -> Any:  # noqa: ANN401
    """A prompt tree as networkx's node-link data; ``PromptTree.from_networkx`` reads its graph."""
    import networkx as nx

    return nx.node_link_data(tree.to_networkx(), edges="edges")


def graphml(tree: Any) -> bytes:  # noqa: ANN401
    """A prompt tree as GraphML, with token ids and prompts as JSON text because GraphML has no lists."""
    import networkx as nx

    graph = tree.to_networkx()
    for attributes in graph.nodes.values():
        for name in ("token_ids", "prompts"):
            attributes[name] = json.dumps(attributes[name])
    return "\n".join(nx.generate_graphml(graph)).encode() + b"\n"
