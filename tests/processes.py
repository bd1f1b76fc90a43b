"""Processes that have slow imports behind them, forked from one that does nothing else."""

from __future__ import annotations

import multiprocessing

forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(
    ["treeshare.cli", "treeshare.engine.llm", "treeshare.runs", "tasks.humaneval", "transformers"]
)
