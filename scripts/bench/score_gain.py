"""What sharing brings where given answers are scored: our model for lm-eval beside lm-eval's own ``hf``.

    python scripts/bench/score_gain.py ../shared/data/gsm8k/test.jsonl --limit 10 --shots 5 --dtype bfloat16

Multiple choice made of GSM8K: after worked examples, which of four worked answers is the question's? Prints
one line of JSON: seconds of each model's ``loglikelihood``, tokens, how far their results lie apart.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path


def main() -> None:
    """Score the same requests with both."""
    parser = argparse.ArgumentParser(description="Seconds to score multiple choice, ours and hf's.")
    parser.add_argument("data", type=Path, help="GSM8K's lines")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--limit", type=int, default=10, help="questions")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8, help="of hf")
    args = parser.parse_args()
    print(json.dumps(compare(args)))


def make_requests(args: argparse.Namespace) -> list[object]:
    """One instance for each choice, as lm-eval makes them."""
    from lm_eval.api.instance import Instance

    with args.data.open(encoding="utf-8") as lines:
        problems = [json.loads(next(lines)) for _ in range(args.shots + args.limit + 3)]
    shots = "".join(f"Question: {p['question']}\nAnswer: {p['answer']}\n\n" for p in problems[: args.shots])
    asked = problems[args.shots :]
    return [
        Instance(
            "loglikelihood",
            {},
            (f"{shots}Question: {asked[i]['question']}\nAnswer:", f" {answered['answer']}"),
            j,
        )
        for i in range(args.limit)
        for j, answered in enumerate(asked[i : i + 4])
    ]


def compare(args: argparse.Namespace) -> dict[str, object]:
    """Seconds and results of both models."""
    from lm_eval.models.huggingface import HFLM

    from treeshare.integrations.lm_eval import TreeshareLM
    from treeshare.models.loading import _resolve

    requests = make_requests(args)
    ours = TreeshareLM(pretrained=args.model, dtype=args.dtype)
    hf = HFLM(pretrained=_resolve(args.model), dtype=args.dtype, device="cpu", batch_size=args.batch_size)
    found = {}
    for name, model in (("treeshare", ours), ("hf", hf)):
        model.loglikelihood(requests[:1], disable_tqdm=True)
        started = time.perf_counter()
        found[name] = model.loglikelihood(requests, disable_tqdm=True)
        found[f"{name}_s"] = round(time.perf_counter() - started, 2)
    stats = ours.llm.stats
    pairs = list(zip(found.pop("treeshare"), found.pop("hf"), strict=True))
    return {
        **found,
        "dtype": args.dtype,
        "requests": len(requests),
        "logical_tokens": stats.logical_tokens,
        "unique_tokens": stats.unique_tokens,
        "computed_tokens": stats.prefilled_tokens,
        "max_relative_difference": max(abs(mine[0] / theirs[0] - 1) for mine, theirs in pairs),
    }


if __name__ == "__main__":
    main()
