"""A forest runs while further prompts arrive by chance: how long is the longest step beside the median one?

    python scripts/bench/arrivals.py ../shared/bench/W1s_small.json --rate 1.5 --seconds 60

The first problem of the workload runs from the start; the others come one by one, as a Poisson process of
``--rate`` requests a second, each with tokens of its own at its prompt's end, so none is a repetition. Every
figure is measured in this run; on a busy machine the processor's seconds (``cpu_...``) are those to look at.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from measuring import guarded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare import LLM
    from treeshare.engine.workload import Workload


def run(llm: LLM, workload: Workload, *, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Step the engine in real time while requests come; figures of its steps."""
    from treeshare import SamplingParams

    rng = np.random.default_rng(seed)
    engine = llm.engine
    num_problems = len(workload.problems)

    def add(number: int) -> None:
        problem = workload.problems[number % num_problems]
        own = rng.integers(0, llm.vocab_size, 16).tolist() if number >= num_problems else []
        params = SamplingParams(
            n=problem.samples,
            temperature=workload.temperature,
            max_tokens=workload.new_tokens,
            ignore_eos=True,
        )
        engine.add_request(llm.request({"prompt_token_ids": problem.prompt_ids + own}, params))

    started = time.perf_counter()
    add(0)
    cpu_s: list[float] = []
    step_s: list[float] = []
    step_rows: list[tuple[int, int]] = []
    num_added, due = 1, rng.exponential(1 / rate)
    while due < seconds or not engine.is_idle:
        now = time.perf_counter() - started
        while due <= min(now, seconds):
            add(num_added)
            num_added += 1
            due += rng.exponential(1 / rate)
        if engine.is_idle:
            time.sleep(0.001)
        else:
            before = time.process_time()
            engine.step()
            cpu_s.append(time.process_time() - before)
            step_s.append(engine.stats.step_s[-1])
            step_rows.append(engine.stats.step_rows[-1])
    return figures(step_s, step_rows) | {
        "cpu_longest_by_median": round(max(cpu_s) / statistics.median(cpu_s), 2),
        "workload": workload.name,
        "requests": num_added,
        "tokens": engine.stats.num_tokens,
        "tok_s": round(engine.stats.num_tokens / (time.perf_counter() - started), 1),
    }


def figures(step_s: Sequence[float], step_rows: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Seconds of steps, all together and by kind."""
    kinds: dict[str, list[float]] = {"all": [], "prompts alone": [], "decoding": [], "both": []}
    for seconds, (decoding, prompt) in zip(step_s, step_rows, strict=True):
        kind = "both" if decoding and prompt else "decoding" if decoding else "prompts alone"
        kinds["all"].append(seconds)
        kinds[kind].append(seconds)
    longest = int(np.argmax(step_s))
    return {
        "steps": {
            kind: {
                "count": len(found),
                "median_s": round(statistics.median(found), 4),
                "p99_s": round(float(np.quantile(found, 0.99)), 4),
                "longest_s": round(max(found), 4),
            }
            for kind, found in kinds.items()
            if found
        },
        "longest_by_median": round(max(step_s) / statistics.median(step_s), 2),
        "p99_by_median": round(float(np.quantile(step_s, 0.99)) / statistics.median(step_s), 2),
        "longest_step_rows": list(step_rows[longest]),
        "median_rows": statistics.median(sum(rows) for rows in step_rows),
        "max_rows": max(sum(rows) for rows in step_rows),
    }


def _main(argv: Sequence[str] | None) -> None:
    from treeshare import LLM
    from treeshare.engine.workload import Workload
    from treeshare.errors import ConfigError

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("workload", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="for which requests come")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    for name in ("rate", "seconds"):
        if not 0 < getattr(options, name) < 1e6:
            raise ConfigError.of(f"--{name}", got=getattr(options, name), expected="a number above 0")
    workload, llm = Workload.read(options.workload), LLM(options.model)
    found = run(llm, workload, rate=options.rate, seconds=options.seconds, seed=options.seed)
    print(json.dumps(found, indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; see the module's text."""
    return guarded("arrivals", _main, argv)


if __name__ == "__main__":
    sys.exit(main())
