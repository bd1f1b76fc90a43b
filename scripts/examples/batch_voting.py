"""BatchPrompt, an ablation: several questions in one prompt, where the tree shares one prefix.

Each round permutes the questions that are left and packs them into prompts; every question gets one vote from
the reply (batch permutation and ensembling). A question whose last votes agree and were called confident is
retired early (self-reflection-guided early stopping); votes that were not count less. What it costs per
question is to be put beside the tree's, which shares the instructions too but keeps questions apart.

Source: Lin et al., "BatchPrompt: accomplish more with less", arXiv 2309.00384. The wording of the prompt is
ours, and so are the defaults.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from treeshare.config import require_int
from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INSTRUCTION = (
    "Answer each numbered question on a line of its own, with the number of the question in front. "
    "End the line with (confident), or with (not confident) if you doubt the answer."
)

STOP = ("\nQ1:", "\n\n")
"""Where a reply ends: at a new batch, or an empty line."""


@dataclass(frozen=True, kw_only=True)
class BatchPromptOptions:
    """How questions are batched and votes are counted.

    Attributes:
        batch_size: Maximum number of questions in one prompt.
        num_rounds: Maximum number of votes for a question.
        num_agreeing: A question is retired when this many votes in a row agree and are confident.
        unsure_weight: What a vote without confidence counts; one with confidence counts 1.
        seed: Of the permutations.

    Raises:
        ConfigError: If a value is out of range.
    """

    batch_size: int = 8
    num_rounds: int = 5
    num_agreeing: int = 2
    unsure_weight: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_rounds", "num_agreeing"):
            require_int(name, getattr(self, name), low=1)
        if not 0 <= self.unsure_weight <= 1:
            raise ConfigError.of("unsure_weight", got=self.unsure_weight, expected="a number in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Vote:
    """What one reply says on one question.

    Attributes:
        answer: In canonical form; None if there is none.
        confident: Whether the reply calls it so.
    """

    answer: str | None
    confident: bool


@dataclass(frozen=True, kw_only=True)
class BatchPromptResult:
    """Votes and answers of all questions, in their order.

    Attributes:
        votes: Of each question, in the rounds' order; fewer than ``num_rounds`` if it was retired.
        answers: What the weighted majority says; None without a vote for anything.
        prompts: All prompts that were asked, round by round.
    """

    votes: list[list[Vote]]
    answers: list[str | None]
    prompts: list[list[str]] = field(repr=False)

    @property
    def num_retired(self) -> int:
        """Questions that needed fewer rounds than the longest."""
        return sum(len(votes) < len(self.prompts) for votes in self.votes)


def run_batch_prompt(
    questions: Sequence[str],
    ask: Callable[[list[str]], Sequence[str]],
    extract: Callable[[str], str | None],
    options: BatchPromptOptions,
    *,
    preamble: str = INSTRUCTION,
) -> BatchPromptResult:
    """Put all questions to a model, in batches, in up to ``num_rounds`` rounds.

    Args:
        questions: Their texts.
        ask: Prompts to replies, one round at a time; replies end at ``STOP``.
        extract: The canonical answer in the text of one question's reply, or None.
        options: How questions are batched and votes are counted.
        preamble: In front of each batch: the instruction, and worked examples in the form of ``batch_text``.
    """
    votes: list[list[Vote]] = [[] for _ in questions]
    rounds: list[list[str]] = []
    left = list(range(len(questions)))
    while left and len(rounds) < options.num_rounds:
        order = permuted(left, seed=options.seed, round_index=len(rounds))
        batches = [order[at : at + options.batch_size] for at in range(0, len(order), options.batch_size)]
        rounds.append([f"{preamble}\n\n{batch_text([questions[i] for i in batch])}" for batch in batches])
        for batch, reply in zip(batches, ask(rounds[-1]), strict=True):
            for i, vote in zip(batch, parse_reply(reply, len(batch), extract), strict=True):
                votes[i].append(vote)
        left = [i for i in left if not is_settled(votes[i], options.num_agreeing)]
    answers = [weighted_majority(own, options.unsure_weight) for own in votes]
    return BatchPromptResult(votes=votes, answers=answers, prompts=rounds)


def permuted(items: Sequence[int], *, seed: int, round_index: int) -> list[int]:
    """The items in an order that depends on seed, round and item alone."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}:{round_index}:{item}".encode()).digest())


def batch_text(questions: Sequence[str], answers: Sequence[str] = ()) -> str:
    """Numbered questions, and where their answers begin; with ``answers``, a worked example.

    Args:
        questions: Their texts; line ends become spaces, a question is one line.
        answers: What a reply should say on each, the confidence included.
    """
    lines = [f"Q{number}: {' '.join(text.split())}" for number, text in enumerate(questions, start=1)]
    if not answers:
        return "\n".join([*lines, "A1:"])
    return "\n".join([*lines, *(f"A{number}: {text}" for number, text in enumerate(answers, start=1))])


def parse_reply(reply: str, num_questions: int, extract: Callable[[str], str | None]) -> list[Vote]:
    """The votes of a reply that goes on after ``A1:``.

    A question that it skips gets a vote without an answer; of an answer that it repeats, the first counts.
    """
    pieces: dict[int, str] = {}
    parts = re.split(r"^A(\d{1,6}):", f"A1:{reply}", flags=re.MULTILINE)
    for number, text in zip(parts[1::2], parts[2::2], strict=True):
        pieces.setdefault(int(number), text)
    votes = []
    for number in range(1, num_questions + 1):
        text = pieces.get(number, "")
        answer = extract(text)
        votes.append(Vote(answer=answer, confident=answer is not None and "(confident)" in text))
    return votes


def is_settled(votes: Sequence[Vote], num_agreeing: int) -> bool:
    """Whether the last ``num_agreeing`` votes are confident and agree."""
    last = votes[-num_agreeing:]
    return (
        len(last) == num_agreeing
        and all(vote.confident for vote in last)
        and len({v.answer for v in last}) == 1
    )


def weighted_majority(votes: Sequence[Vote], unsure_weight: float) -> str | None:
    """The answer with the most weight; on a tie the one that was voted for first. None casts no vote."""
    weights: dict[str, float] = defaultdict(float)
    for vote in votes:
        if vote.answer is not None:
            weights[vote.answer] += 1.0 if vote.confident else unsure_weight
    return max(weights, key=weights.__getitem__, default=None)
