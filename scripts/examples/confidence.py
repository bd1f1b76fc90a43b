"""Voting among confident completions: those that lose their confidence end early.

A token's confidence is minus the mean log-probability of the likeliest tokens at its place; a completion ends
where the mean of its last ``window`` tokens falls below a bound. The bound is a quantile of a few
completions that run whole (Fu et al., "Deep Think with Confidence", arXiv 2508.15260, online mode).

    python scripts/examples/confidence.py --n 32
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from treeshare import LLM, SamplingParams
from treeshare.sampling.logits_processor import LogitsProcessor, MoveDirectionality

if TYPE_CHECKING:
    from treeshare.config import EngineConfig
    from treeshare.engine.outputs import Logprob
    from treeshare.sampling.logits_processor import BatchUpdate


@dataclass(slots=True)
class Place:
    """A prompt, or a token behind it: completions that agree share it.

    Attributes:
        confidence: At this place; None until it is computed.
        parent: The place before.
        children: The places behind it, by token.
    """

    parent: Place | None = None
    confidence: float | None = None
    children: dict[int, Place] = field(default_factory=dict)

    def window(self, size: int) -> float | None:
        """The mean confidence of so many places, this one and those before; None where there are fewer."""
        total, place = 0.0, self
        for _ in range(size):
            if place is None or place.confidence is None:
                return None
            total, place = total + place.confidence, place.parent
        return total / size


class StopByConfidence(LogitsProcessor):
    """Ends completions whose confidence has fallen; ``extra_args``: ``window``, ``min_confidence``, ``end``.

    ``end`` is a token, and one of the request's ``stop_token_ids``.

    What it remembers is a tree of prompts and tokens, so rows that split, or come back, find what was theirs.
    """

    num_likeliest = 20

    def __init__(self, config: EngineConfig, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(config, device, is_pin_memory)
        self._roots: dict[tuple[int, ...], Place] = {}
        self._rows: dict[int, tuple[Place, list[int], SamplingParams]] = {}
        self._places: dict[int, tuple[int, Place]] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a window without tokens."""
        if (sampling_params.extra_args or {}).get("window", 1) < 1:
            raise ValueError("window: expected at least 1")

    def is_argmax_invariant(self) -> bool:
        """It takes all tokens but the end's away."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Note what each row is; a row that is new begins at its prompt and walks down its tokens."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._forget(index)
        for index, params, prompt, output in batch_update.added:
            self._forget(index)
            if params.extra_args and "window" in params.extra_args:
                root = self._roots.setdefault(tuple(prompt or ()), Place())
                self._rows[index], self._places[index] = (root, output, params), (0, root)
        for source, target, direction in batch_update.moved:
            assert direction == MoveDirectionality.UNIDIRECTIONAL
            self._forget(target)
            if source in self._rows:
                self._rows[target], self._places[target] = self._rows.pop(source), self._places.pop(source)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Note each row's confidence; leave the end alone where it has fallen too low."""
        rows = list(self._rows)
        top = logits[rows].log_softmax(-1).topk(self.num_likeliest).values.mean(-1).neg().tolist()
        for row, confidence in zip(rows, top, strict=True):
            place, options = self._place(row), self._rows[row][2].extra_args or {}
            place.confidence = confidence
            mean = place.window(options["window"])
            if mean is not None and mean < options["min_confidence"]:
                logits[row].fill_(-torch.inf)[options["end"]] = 0.0
        return logits

    def _place(self, row: int) -> Place:
        """Where a row is now: down its new tokens."""
        depth, place = self._places[row]
        for token in self._rows[row][1][depth:]:
            place = place.children.setdefault(token, Place(place))
        self._places[row] = len(self._rows[row][1]), place
        return place

    def _forget(self, index: int) -> None:
        self._rows.pop(index, None)
        self._places.pop(index, None)


def windows(logprobs: list[dict[int, Logprob]], size: int) -> list[float]:
    """The mean confidence of each window of a whole completion."""
    count = StopByConfidence.num_likeliest
    tokens = [-sum(sorted((e.logprob for e in at.values()), reverse=True)[:count]) / count for at in logprobs]
    return [sum(tokens[i : i + size]) / size for i in range(len(tokens) - size + 1)]


def main() -> None:
    """Vote among the completions that end whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompt", default="Q: What is the capital of France?\nA:")
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--warm-up", type=int, default=8, help="completions that run whole")
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument(
        "--keep", type=float, default=0.9, help="share of the first completions that would stay"
    )
    parser.add_argument("--max-tokens", type=int, default=48)
    args = parser.parse_args()
    llm = LLM(args.model, logits_processors=[StopByConfidence])
    common = {"temperature": 0.8, "max_tokens": args.max_tokens, "stop": "\nQ:"}
    first = SamplingParams(n=args.warm_up, seed=0, logprobs=StopByConfidence.num_likeliest, **common)
    whole = llm.generate(args.prompt, first, use_tqdm=False)[0].outputs
    lowest = sorted(min(windows(out.logprobs or [], args.window), default=0.0) for out in whole)
    bound = lowest[int((1 - args.keep) * len(lowest))]
    end = llm.vocab_size - 1  # a token of its own tells these ends from the model's
    options = {"window": args.window, "min_confidence": bound, "end": end}
    rest = SamplingParams(n=args.n, seed=1, stop_token_ids=[end], extra_args=options, **common)
    found = llm.generate(args.prompt, rest, use_tqdm=False)[0].outputs
    ended = [out for out in found if out.stop_reason == end]
    votes = Counter(out.text.strip() for out in (*whole, *found) if out.stop_reason != end)
    print(f"bound {bound:.2f}; {len(ended)} of {len(found)} ended early, {llm.stats.num_tokens:,} tokens")
    for text, count in votes.most_common(3):
        print(f"{count:4} {text[:70]!r}")


if __name__ == "__main__":
    main()
