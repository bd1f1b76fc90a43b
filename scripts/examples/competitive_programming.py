"""Competitive programming as AlphaCode did it: sample many programs, filter, cluster, submit ten.

    python scripts/examples/competitive_programming.py --data code_contests.jsonl --limit 4 -n 64

Programs that fail a problem's public tests are filtered out, those left are clustered by what they print, and
submissions come from the largest clusters first. The private and generated tests decide. ``--data`` has the
field names of the hub's ``deepmind/code_contests``; all programs run in the sandbox.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from treeshare.errors import TreeshareError

if TYPE_CHECKING:
    from collections.abc import Sequence

SUBMISSIONS = 10


def _main(argv: Sequence[str] | None) -> None:
    from treeshare import LLM, SamplingParams
    from treeshare.evals import PromptOptions, build_prompts, evaluate_completions
    from treeshare.evals.sandbox import Limits, default_sandbox
    from treeshare.evals.statistics.clustering import Candidate, submissions_at_k
    from treeshare.tasks.registry import get_task

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="CodeContests in a local file; the hub's by default")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=4, help="only the first N problems")
    parser.add_argument("-n", type=int, default=64, help="programs for each")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.8)
    args = parser.parse_args(argv)

    task, sandbox = get_task("code-contests"), default_sandbox()
    problems = task.load(args.data)[: args.limit]
    prompts = build_prompts(task, problems, PromptOptions(data=args.data)).texts()
    params = SamplingParams(
        n=args.n, temperature=args.temperature, max_tokens=args.max_tokens, stop=task.stop, seed=0
    )
    outputs = LLM(args.model).generate(prompts, params)
    records = [
        {"task_id": problem.task_id, "completion_index": completion.index, "completion": completion.text}
        for problem, output in zip(problems, outputs, strict=True)
        for completion in output.outputs
    ]
    workers = os.cpu_count() or 1
    checked = evaluate_completions(task, problems, records, sandbox, workers=workers, limits=Limits())

    print(f"| problem | pass public tests | clusters | right | chance with {SUBMISSIONS} submissions |")
    print("|---|--:|--:|--:|--:|")
    for problem in problems:
        results = [
            completion.result for completion in checked.completions if completion.task_id == problem.task_id
        ]
        candidates = [
            Candidate(passed=result.passed, passed_public=result.passed_public, signature=result.signature)
            for result in results
        ]
        left = [candidate for candidate in candidates if candidate.passed_public is not False]
        clusters, right = (
            len({candidate.signature for candidate in left}),
            sum(candidate.passed for candidate in candidates),
        )
        chance = submissions_at_k(candidates, SUBMISSIONS, len(candidates))
        print(f"| {problem.task_id} | {len(left)} of {args.n} | {clusters} | {right} | {chance:.3f} |")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: a user's mistake is one line and exit status 2."""
    try:
        _main(argv)
    except TreeshareError as error:
        print(f"competitive_programming: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
