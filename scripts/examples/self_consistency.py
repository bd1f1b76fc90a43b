"""Self-consistency on grade-school mathematics: sample n answers, take the one that most of them give.

    python scripts/examples/self_consistency.py --data gsm8k_test.jsonl --limit 16 -n 32

Wang et al., arXiv 2203.11171. Beside the majority of n stands what a single answer is worth on average.
``--data`` has the field names of the hub's ``openai/gsm8k``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from treeshare.errors import TreeshareError

if TYPE_CHECKING:
    from collections.abc import Sequence


def _main(argv: Sequence[str] | None) -> None:
    from treeshare import LLM, SamplingParams
    from treeshare.evals import PromptOptions, build_prompts
    from treeshare.evals.statistics.majority import majority_at_k
    from treeshare.tasks.registry import get_task

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="GSM8K in a local file; the hub's test split by default")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=16, help="only the first N problems")
    parser.add_argument("-n", type=int, default=32, help="answers for each")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.5)
    args = parser.parse_args(argv)

    task = get_task("gsm8k")
    problems = task.load(args.data)[: args.limit]
    prompts = build_prompts(task, problems, PromptOptions(data=args.data)).texts()
    params = SamplingParams(
        n=args.n, temperature=args.temperature, max_tokens=args.max_tokens, stop=task.stop, seed=0
    )
    outputs = LLM(args.model).generate(prompts, params)

    print("| problem | right answer | answers | single | majority |\n|---|--:|--:|--:|--:|")
    singles, majorities = [], []
    for problem, output in zip(problems, outputs, strict=True):
        answers = [task.answer(problem, completion.text) for completion in output.outputs]
        right = problem.data["answer"]
        singles.append(answers.count(right) / args.n)
        majorities.append(majority_at_k(answers, {right}, args.n))
        given = len({answer for answer in answers if answer is not None})
        print(f"| {problem.task_id} | {right} | {given} | {singles[-1]:.3f} | {majorities[-1]:.3f} |")
    print(f"| mean | | | {sum(singles) / len(singles):.3f} | {sum(majorities) / len(majorities):.3f} |")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: a user's mistake is one line and exit status 2."""
    try:
        _main(argv)
    except TreeshareError as error:
        print(f"self_consistency: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
