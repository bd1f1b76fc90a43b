"""GRPO on grade-school mathematics with TRL, its completions generated as one tree.

    python scripts/examples/grpo.py --data gsm8k_train.jsonl --limit 64 -n 16 --steps 8

The reward is 1 for a right answer, and a tenth for any answer in the asked form. ``--data`` has the field
names of the hub's ``openai/gsm8k``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeshare.errors import TreeshareError

if TYPE_CHECKING:
    from collections.abc import Sequence


def _main(argv: Sequence[str] | None) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from treeshare import LLM
    from treeshare.evals import PromptOptions, build_prompts
    from treeshare.integrations.trl import TreeRollout
    from treeshare.tasks.registry import get_task

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="GSM8K in a local file; the hub's test split by default")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=64, help="only the first N problems")
    parser.add_argument("-n", type=int, default=8, help="completions for each")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=128)
    args = parser.parse_args(argv)

    task, llm = get_task("gsm8k"), LLM(args.model)
    problems = task.load(args.data)[: args.limit]
    prompts = build_prompts(task, problems, PromptOptions(data=args.data)).texts()
    rows = [
        {"prompt": p, "right": problem.data["answer"]} for p, problem in zip(prompts, problems, strict=True)
    ]

    def reward(completions: list[str], right: list[str], **_: Any) -> list[float]:  # noqa: ANN401
        answers = [task.answer(problems[0], text.split(task.stop[0])[0]) for text in completions]
        return [1.0 if a == b else 0.1 * (a is not None) for a, b in zip(answers, right, strict=True)]

    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            per_device_train_batch_size=args.n,
            num_generations=args.n,
            max_steps=args.steps,
            max_completion_length=args.max_tokens,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
        )
        trainer = GRPOTrainer(
            model=llm.model.name_or_path,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            rollout_func=TreeRollout(llm),
        )
        trainer.train()
    for step in trainer.state.log_history:
        if "reward" in step:
            print(f"step {step['step']}: mean reward {float(step['reward']):.3f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: a user's mistake is one line and exit status 2."""
    try:
        _main(argv)
    except TreeshareError as error:
        print(f"grpo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
