"""GSM8K by BatchPrompt and by the tree, side by side: tokens per question, accuracy, seconds.

    python scripts/examples/batch_prompt.py --data test.jsonl --limit 32 --batch-size 8 --rounds 5

Both ask each question up to ``rounds`` times and vote. BatchPrompt asks several questions in one prompt, in
another order each round, greedily; the tree samples ``rounds`` completions of each question under the shared
worked examples. Every figure is measured in the run that prints it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from batch_voting import (
    INSTRUCTION,
    STOP,
    BatchPromptOptions,
    Vote,
    batch_text,
    run_batch_prompt,
    weighted_majority,
)

from treeshare.engine.llm import LLM
from treeshare.errors import TreeshareError
from treeshare.evals import Problem, PromptOptions, build_prompts
from treeshare.sampling import SamplingParams
from treeshare.tasks.gsm8k import Gsm8k, extract_answer
from treeshare.tree import PromptTree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.engine.outputs import RequestOutput

COLUMNS = (
    "method",
    "right",
    "prompt tokens",
    "unique prompt tokens",
    "new tokens",
    "computed per question",
    "billed per question",
    "seconds",
)


class Counter:
    """Adds up what a method cost."""

    def __init__(self) -> None:
        self.logical = self.unique = self.new = 0
        self._started = time.perf_counter()

    def add(self, outputs: Sequence[RequestOutput]) -> None:
        """Count a call's tokens: a prompt is billed for each completion, computed once for each node."""
        tree = PromptTree.from_prompts([output.prompt_token_ids or [] for output in outputs])
        stats = tree.stats([len(output.outputs) for output in outputs])
        self.logical += stats.logical_tokens
        self.unique += stats.unique_tokens
        self.new += sum(len(completion.token_ids) for output in outputs for completion in output.outputs)

    def row(self, method: str, answers: Sequence[str | None], problems: Sequence[Problem]) -> str:
        """A line of the table."""
        pairs = zip(answers, problems, strict=True)
        right = sum(answer == problem.data["answer"] for answer, problem in pairs)
        seconds = time.perf_counter() - self._started
        n = len(problems)
        computed, billed = (self.unique + self.new) / n, (self.logical + self.new) / n
        cells = [method, f"{right} of {n}", self.logical, self.unique, self.new]
        return (
            "| " + " | ".join(map(str, [*cells, f"{computed:.1f}", f"{billed:.1f}", f"{seconds:.3g}"])) + " |"
        )


def by_batches(llm: LLM, problems: Sequence[Problem], args: argparse.Namespace) -> str:
    """Ask with BatchPrompt."""
    counter = Counter()
    worked = Gsm8k().shots(args.data, None)
    questions = [shot.prompt.removeprefix("Q: ").removesuffix("\nA:") for shot in worked]
    example = batch_text(questions, [f"{shot.answer.strip()} (confident)" for shot in worked])
    params = SamplingParams(temperature=0, max_tokens=args.max_tokens * args.batch_size, stop=STOP)

    def ask(prompts: list[str]) -> list[str]:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        counter.add(outputs)
        return [output.outputs[0].text for output in outputs]

    options = BatchPromptOptions(batch_size=args.batch_size, num_rounds=args.rounds, seed=args.seed)
    result = run_batch_prompt(
        [problem.data["question"] for problem in problems],
        ask,
        extract_answer,
        options,
        preamble=f"{INSTRUCTION}\n\n{example}",
    )
    name = f"BatchPrompt, {args.batch_size} a prompt, {result.num_retired} retired early"
    return counter.row(name, result.answers, problems)


def by_tree(llm: LLM, problems: Sequence[Problem], args: argparse.Namespace) -> str:
    """Sample each question on its own, worked examples shared."""
    counter, task = Counter(), Gsm8k()
    prompts = build_prompts(task, problems, PromptOptions(data=args.data)).texts()
    params = SamplingParams(
        n=args.rounds,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        stop=task.stop,
        seed=args.seed,
    )
    outputs = llm.generate(prompts, params, use_tqdm=False)
    counter.add(outputs)
    answers = [
        weighted_majority(
            [Vote(answer=extract_answer(completion.text), confident=True) for completion in output.outputs],
            1.0,
        )
        for output in outputs
    ]
    return counter.row(f"tree, {args.rounds} completions each", answers, problems)


def main(argv: Sequence[str] | None = None) -> int:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="GSM8K's test split, JSON lines")
    parser.add_argument("--limit", type=int, default=32, help="only the first N questions")
    parser.add_argument("--batch-size", type=int, default=8, help="questions in one prompt")
    parser.add_argument("--rounds", type=int, default=5, help="maximum number of votes for a question")
    parser.add_argument(
        "--max-tokens", type=int, default=128, help="maximum number of new tokens for one question"
    )
    parser.add_argument("--temperature", type=float, default=0.5, help="of the tree's completions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args(argv)
    try:
        problems = Gsm8k().load(args.data)[: args.limit]
        llm = LLM(args.model, dtype=args.dtype)
        print("| " + " | ".join(COLUMNS) + " |\n|---" + "|--:" * (len(COLUMNS) - 1) + "|")
        print(by_batches(llm, problems, args), flush=True)
        print(by_tree(llm, problems, args))
    except TreeshareError as error:
        print(f"batch_prompt: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
