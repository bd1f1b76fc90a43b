"""What a recorded run is given, and how its outputs become items: exact values by name.

Only the public interface is used, so that the same code runs on any commit. What has no public place (a class
that a harness looks up by name, ``beam_search``) is found in the checkout by its source text.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    Items = dict[str, Any]

THREADS = 2
KV_BUDGET_BYTES = 1 << 30
VOLATILE = ("id", "request_id", "created", "versions")
"""Keys of answers and manifests that differ from run to run or from machine to machine."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The folders and files that a run needs.

    Attributes:
        checkout: The code that runs.
        work: A folder for files; the tiny models in it are shared by all runs.
        workload: The workload file W1s.
    """

    checkout: Path
    work: Path
    workload: Path

    def module_with(self, text: str) -> Any:  # noqa: ANN401
        """The only module of the checkout's package whose source contains ``text``.

        Raises:
            LookupError: If no module contains it, or several do.
        """
        paths = [p for p in sorted((self.checkout / "treeshare").rglob("*.py")) if text in p.read_text()]
        if len(paths) != 1:
            raise LookupError(f"{text!r}: got {len(paths)} modules of {self.checkout}, expected one")
        return importlib.import_module(".".join(paths[0].relative_to(self.checkout).with_suffix("").parts))


def exact(value: Any) -> Any:  # noqa: ANN401
    """A value as JSON: floats as hexadecimal text, tuples as lists, keys as text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value).hex()
    if isinstance(value, dict):
        return {str(key): exact(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [exact(member) for member in value]
    if hasattr(value, "tolist"):
        return exact(value.tolist())
    raise TypeError(f"exact: got {type(value).__name__}, expected what JSON can express")


def lasting(value: Any) -> Any:  # noqa: ANN401
    """A JSON value without the keys that differ from run to run."""
    if isinstance(value, dict):
        return {key: lasting(member) for key, member in value.items() if key not in VOLATILE}
    return [lasting(member) for member in value] if isinstance(value, list) else value


def completion_item(completion: Any) -> Items:  # noqa: ANN401
    """All fields of a completion."""
    logprobs = completion.logprobs and [
        [[token, entry.logprob, entry.rank, entry.decoded_token] for token, entry in entries.items()]
        for entries in completion.logprobs
    ]
    names = (
        "token_ids",
        "text",
        "finish_reason",
        "stop_reason",
        "cumulative_logprob",
        "weight_versions",
    )
    return {name: getattr(completion, name) for name in names} | {"logprobs": logprobs}


def stats_item(llm: Any) -> Items:  # noqa: ANN401
    """The engine's counters: they show it if the same tokens were computed by another schedule."""
    names = ("num_steps", "num_rows", "num_replayed", "num_preemptions", "step_rows", "logical_tokens")
    names += ("unique_tokens", "prefilled_tokens", "peak_kv_bytes", "num_finished", "num_cancelled")
    found = {name: getattr(llm.stats, name, None) for name in names}
    return found | {"step_rows": list(found["step_rows"])}


def make_llm(model: Path | str, **options: Any) -> Any:  # noqa: ANN401
    """An ``LLM`` with every option fixed that would otherwise depend on the machine's state."""
    from treeshare import LLM

    fixed = {"device": "cpu", "threads": THREADS, "kv_budget_bytes": KV_BUDGET_BYTES}
    return LLM(model, **(fixed | options))


def make_tiny(model: Path, **options: Any) -> Any:  # noqa: ANN401
    """As ``make_llm``, with nodes so cheap that even small segments are shared."""
    return make_llm(model, **({"fold_cost": fold_cost(launch_cost=8, merge_cost=0)} | options))


def fold_cost(**costs: int) -> Any:  # noqa: ANN401
    """A ``FoldCost``, wherever it is defined by now."""
    import treeshare

    assert treeshare.LLM, "its import loads the class"
    modules = [module for name, module in sys.modules.items() if name.startswith("treeshare.")]
    return next(module.FoldCost for module in modules if hasattr(module, "FoldCost"))(**costs)


def generated(name: str, llm: Any, prompts: Iterable[Any], params: Any) -> Items:  # noqa: ANN401
    """The items of a call of ``generate``; prompts are token ids or text."""
    asked = [prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt} for prompt in prompts]
    items: Items = {}
    for output in llm.generate(asked, params, use_tqdm=False):
        where = f"{name}/prompt {output.request_id}"
        items[where] = {"num_cached_tokens": output.num_cached_tokens, "ended": output.ended}
        items |= {f"{where}/{completion.index}": completion_item(completion) for completion in output.outputs}
    return items | {f"{name}/stats": stats_item(llm)}


def sampling(**options: Any) -> Any:  # noqa: ANN401
    """Parameters of a short run."""
    from treeshare import SamplingParams

    return SamplingParams(**({"n": 5, "temperature": 0.8, "max_tokens": 24, "seed": 7} | options))


def cli(*words: str) -> None:
    """Run the command line in this process.

    Raises:
        RuntimeError: If it ends with a status other than 0.
    """
    sys.argv = ["treeshare", *words]
    try:
        runpy.run_module("treeshare.cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"treeshare {' '.join(words)}: status {end.code}") from end
