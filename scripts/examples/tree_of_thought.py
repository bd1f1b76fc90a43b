"""A small tree of thought on grade-school mathematics: propose lines, keep the likeliest, go on from there.

    python scripts/examples/tree_of_thought.py GSM8K.jsonl --limit 4 --width 3 --proposals 3

Each state is a branch of one ``TokenSearch``; a proposal forks it and samples one more line. States are
ranked by the mean log-probability of their tokens (Yao et al., arXiv 2305.10601, with the model's own
likelihood as the judge). Beside the tree's answer stands that of greedy decoding.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from treeshare.errors import TreeshareError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from treeshare.engine.search import Branch, TokenSearch

LAST_NUMBER = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?")


def propose(
    search: TokenSearch,
    states: list[Branch],
    proposals: int,
    ends: Callable[[Sequence[int]], bool],
    generator: np.random.Generator,
    *,
    max_line: int,
    temperature: float,
) -> list[Branch]:
    """Fork each state ``proposals`` times and sample one line for each fork."""
    growing = [state for state in states for _ in range(proposals)]
    starts = {len(state.token_ids) for state in states}
    assert starts, "there is a state to go on from"
    lengths = [len(state.token_ids) for state in growing]
    done: list[Branch] = []
    kept = set(states)
    for _ in range(max_line):
        steps = [(branch, _draw(branch, generator, temperature)) for branch in growing]
        forks = search.extend(steps)
        search.drop([branch for branch in growing if branch not in kept])
        going_on = [
            (fork, length)
            for fork, length in zip(forks, lengths, strict=True)
            if not ends(fork.token_ids[length:]) and len(fork.token_ids) < search.max_tokens
        ]
        done += [fork for fork in forks if all(fork is not other for other, _ in going_on)]
        growing, lengths = [fork for fork, _ in going_on], [length for _, length in going_on]
        if not growing:
            break
    return done + growing


def _draw(branch: Branch, generator: np.random.Generator, temperature: float) -> int:
    if temperature == 0:
        return int(branch.logprobs.argmax())
    chances = np.exp(branch.logprobs.astype(np.float64) / temperature)
    return int(np.searchsorted(np.cumsum(chances / chances.sum()), generator.random()))


def mean_logprob(branch: Branch) -> float:
    """How likely the model finds the branch, per token."""
    return branch.cumulative_logprob / max(len(branch.token_ids), 1)


def think(
    search: TokenSearch,
    decode: Callable[[Sequence[int]], str],
    eos: frozenset[int],
    options: argparse.Namespace,
) -> Branch:
    """The best branch after ``depth`` lines."""
    generator = np.random.default_rng(options.seed)

    def is_final(branch: Branch) -> bool:
        return branch.token_ids[-1] in eos or "####" in decode(branch.token_ids)

    def ends_line(tokens: Sequence[int]) -> bool:
        return tokens[-1] in eos or "\n" in decode(tokens)

    states, final = [search.root], []
    for _ in range(options.depth):
        proposed = propose(
            search,
            states,
            options.proposals,
            ends_line,
            generator,
            max_line=options.max_line,
            temperature=options.temperature,
        )
        final += [branch for branch in proposed if is_final(branch)]
        ranked = sorted((b for b in proposed if not is_final(b)), key=mean_logprob, reverse=True)
        search.drop([*states, *ranked[options.width :]])
        states = [b for b in ranked[: options.width] if len(b.token_ids) < search.max_tokens]
        if not states:
            break
    return max(final or states or proposed, key=mean_logprob)


def last_number(text: str) -> str:
    """The last number of a text, without commas; empty if there is none."""
    found = LAST_NUMBER.findall(text)
    return found[-1].replace(",", "") if found else ""


def _main(argv: Sequence[str] | None) -> None:
    from treeshare import LLM, SamplingParams
    from treeshare.tasks.registry import get_task

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="GSM8K as JSON lines")
    parser.add_argument("--model", default="smollm2-135m")
    for name, default in (("limit", 4), ("width", 3), ("proposals", 3), ("depth", 5), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--max-line", type=int, default=48, dest="max_line")
    parser.add_argument("--temperature", type=float, default=0.8)
    options = parser.parse_args(argv)
    problems = get_task("gsm8k").load(options.data)[: options.limit]
    llm = LLM(options.model)
    tokenizer = llm.get_tokenizer()
    max_tokens = options.depth * options.max_line
    print("| problem | tree of thought | greedy | tokens of the answer |\n|---|--:|--:|--:|")
    for problem in problems:
        prompt = f"{problem.prompt}"
        with llm.search(prompt, max_tokens=max_tokens) as search:
            best = think(search, tokenizer.decode, llm.eos_token_ids, options)
        greedy = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=max_tokens), use_tqdm=False)
        answers = [
            last_number(text) for text in (tokenizer.decode(best.token_ids), greedy[0].outputs[0].text)
        ]
        print(f"| {problem.task_id} | {answers[0]} | {answers[1]} | {len(best.token_ids)} |", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: a user's mistake is one line and exit status 2."""
    try:
        _main(argv)
    except TreeshareError as error:
        print(f"tree_of_thought: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
