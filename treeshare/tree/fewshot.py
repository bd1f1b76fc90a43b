"""Few-shot prompts, built explicitly: preamble, shots, problem.

The parts only make the text. Whole prompts are tokenised and the sharing is found in their tokens: tokenisers
merge across the borders of parts, so parts tokenised one by one would give other tokens than the plain
prompt.

Which shots stand in front is a choice with a price: ``fixed`` and ``random`` give all problems the same ones,
stored once; ``nearest`` gives each problem its own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal, get_args

from treeshare.config import require_choice, require_int
from treeshare.errors import ConfigError
from treeshare.tree.planner import shared_first
from treeshare.tree.prompt_tree import PromptTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ShotChoice = Literal["fixed", "random", "nearest", "nearest-shared"]
SHOT_CHOICES: tuple[ShotChoice, ...] = get_args(ShotChoice)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A worked example.

    Attributes:
        prompt: The example's question, in the form that a problem's prompt has.
        answer: What a right completion of it would be, up to where the next part may begin.
        task_id: Of the problem that it was made from, which never gets it; None if it is none of the task's.
    """

    prompt: str
    answer: str
    task_id: str | None = None

    @property
    def text(self) -> str:
        """As it stands in a prompt."""
        return self.prompt + self.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShotPrompts:
    """Problems with a preamble and worked examples in front.

    Attributes:
        problems: The text of each problem, the end of its prompt.
        preamble: Text at the very front; left out (with its separator) if empty.
        shots: Worked examples in front of every problem, in order.
        shots_by_problem: Instead of ``shots``, a list of its own for each problem; equal beginnings are still
            shared.
        separator: Text between any two parts.

    Raises:
        ConfigError: If both kinds of shots are given, a list of texts is one string, or ``shots_by_problem``
            has not one list per problem.
    """

    problems: Sequence[str]
    preamble: str = ""
    shots: Sequence[str] = ()
    shots_by_problem: Sequence[Sequence[str]] | None = None
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        _check_texts("problems", self.problems)
        _check_texts("shots", self.shots)
        if self.shots_by_problem is None:
            return
        if self.shots:
            raise ConfigError("shots: got both shots and shots_by_problem, expected one of them")
        if len(self.shots_by_problem) != len(self.problems):
            raise ConfigError.of(
                "shots_by_problem",
                got=f"{len(self.shots_by_problem)} lists",
                expected=f"one for each of {len(self.problems)} problems",
            )
        for i, shots in enumerate(self.shots_by_problem):
            _check_texts(f"shots_by_problem[{i}]", shots)

    def texts(self) -> list[str]:
        """The whole prompt of each problem."""
        shots_by_problem = self.shots_by_problem or [self.shots] * len(self.problems)
        front = [self.preamble] if self.preamble else []
        return [
            self.separator.join([*front, *shots, problem])
            for shots, problem in zip(shots_by_problem, self.problems, strict=True)
        ]

    def tree(self, encode: Callable[[str], Sequence[int]]) -> PromptTree:
        """Tokenise the whole prompts and find what they share.

        Args:
            encode: Text to token ids, special tokens included if the model wants them.

        Raises:
            DataError: If ``encode`` gives something other than token ids.
        """
        return PromptTree.from_prompts([encode(text) for text in self.texts()])


def _check_texts(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ConfigError.of(name, got=texts, expected="a list of strings")


def choose_shots(
    problems: Sequence[tuple[str, str]],
    pool: Sequence[Shot],
    *,
    num_shots: int,
    choice: ShotChoice = "fixed",
    seed: int = 0,
) -> list[list[Shot]]:
    """Worked examples for each problem.

    A problem never gets the example made from itself, nor one with its own prompt: the next one stands in.

    Args:
        problems: Task id and prompt of each.
        pool: What there is to choose from; the first ones are the fixed ones.
        num_shots: Examples for each problem.
        choice: ``fixed``: the pool's first. ``random``: one draw for all problems, decided by ``seed`` alone.
            ``nearest``: for each problem those whose prompts are most like its own (cosine of TF-IDF over
            words), the nearest last, next to the problem. ``nearest-shared``: the same ones, but those that
            many problems have come first, so that more of the prompts is shared.
        seed: For ``random``.

    Raises:
        ConfigError: If the pool is too small, the choice is unknown, or a nearest one lacks its package.
    """
    require_int("shots", num_shots, low=0)
    require_choice("shot_choice", choice, SHOT_CHOICES)
    if num_shots == 0:
        return [[] for _ in problems]
    if choice in ("nearest", "nearest-shared"):
        rankings: Iterable[list[int]] = _by_similarity([prompt for _, prompt in problems], pool)
    else:
        ranking = list(range(len(pool)))
        if choice == "random":
            ranking.sort(key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
        rankings = [ranking] * len(problems)
    chosen: list[list[int]] = []
    for (task_id, prompt), ranking in zip(problems, rankings, strict=True):
        others = (i for i in ranking if pool[i].task_id != task_id and pool[i].prompt != prompt)
        shots = list(islice(others, num_shots))
        if len(shots) < num_shots:
            expected = f"at most {len(shots)}, the worked examples there are for {task_id}"
            raise ConfigError.of("shots", got=num_shots, expected=expected)
        chosen.append(shots[::-1] if choice == "nearest" else shots)
    if choice == "nearest-shared":
        chosen = shared_first(chosen)
    return [[pool[i] for i in shots] for shots in chosen]


def _by_similarity(prompts: Sequence[str], pool: Sequence[Shot]) -> Iterable[list[int]]:
    """For each prompt the pool's places, most similar first, the lower place on a tie."""
    if not prompts or not pool:
        return [[] for _ in prompts]
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ConfigError(
            "shot_choice: nearest needs scikit-learn; pip install treeshare[evals], or take fixed or random"
        ) from error
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
    try:
        in_pool = vectorizer.fit_transform([shot.prompt for shot in pool])
    except ValueError:  # not a single word in the pool: everything is as near
        return [list(range(len(pool))) for _ in prompts]
    similarities = vectorizer.transform(prompts) @ in_pool.T
    return ((-row.toarray()[0]).argsort(kind="stable").tolist() for row in similarities)
