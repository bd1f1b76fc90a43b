"""Processes with slow imports behind them, forked from one that does nothing else; and who started whom."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(
    [
        "treeshare.cli",
        "treeshare.engine.llm",
        "treeshare.runs",
        "treeshare.tasks.humaneval",
        "transformers",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.modeling_llama",
        "tests.cli.conftest",  # and what else has functions that are started there
        "tests.runs.test_faults",
    ]
)


def child_ids(pid):
    """Ids of the processes that ``pid`` has started; looked up again if a thread of it ends meanwhile."""
    while True:
        try:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            return [int(i) for task in tasks for i in (task / "children").read_text(encoding="ascii").split()]
        except FileNotFoundError:
            if not Path(f"/proc/{pid}").exists():
                raise
