"""Few-shot prompts: preamble, shots (worked examples), problem.

Whole prompts are tokenised, and sharing is found in their tokens. Tokenising the parts one by one would give
other tokens, because a tokeniser merges characters across the parts' borders.

The choice of shots matters for sharing: with ``fixed`` and ``random`` all problems have the same shots, which
are stored once; with ``nearest`` each problem has its own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal, get_args

from treeshare.config import require_choice, require_int
from treeshare.errors import ConfigError
from treeshare.installation import how_to_add
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
        prompt: The example's question, in the form of a problem's prompt.
        answer: A correct completion of ``prompt``; the separator and the next part follow it directly.
        task_id: Task id of the problem that the example was made from; that problem never gets it as a shot.
            None if the example is not from the task.
    """

    prompt: str
    answer: str
    task_id: str | None = None

    @property
    def text(self) -> str:
        """The example as it appears in a prompt."""
        return self.prompt + self.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShotPrompts:
    """Problems, each with a preamble and worked examples before it.

    Attributes:
        problems: The text of each problem, with which its prompt ends.
        preamble: Text with which every prompt begins; left out, with its separator, if empty.
        shots: Worked examples for all problems, in order.
        shots_by_problem: A list of worked examples for each problem, instead of ``shots``. Equal beginnings
            are still shared.
        separator: Text between two parts.

    Raises:
        ConfigError: If both ``shots`` and ``shots_by_problem`` are given, a list of texts is a plain string,
            or ``shots_by_problem`` does not have a list for each problem.
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
            raise ConfigError("shots: got both shots and shots_by_problem, expected only one of the two")
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
        """Tokenise the whole prompts and find the prefixes that they share.

        Args:
            encode: Turns text into token ids, including the special tokens that the model expects.

        Raises:
            DataError: If ``encode`` returns something other than token ids.
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
    """Choose worked examples for each problem.

    A problem never gets an example that was made from it or that has the same prompt; it gets the next
    example instead.

    Args:
        problems: Task id and prompt of each problem.
        pool: The examples to choose from.
        num_shots: Number of examples for each problem.
        choice: ``fixed``: the first of the pool. ``random``: the same random examples for all problems,
            determined by ``seed`` alone. ``nearest``: for each problem the examples whose prompts are most
            similar to its own (cosine of TF-IDF over words), the most similar last. ``nearest-shared``: the
            same examples as ``nearest``, but those that many problems have come first, so that prompts share
            longer prefixes.
        seed: For ``random``.

    Raises:
        ConfigError: If the pool is too small, ``choice`` is unknown, or scikit-learn is missing for
            ``nearest``.
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
        allowed = (i for i in ranking if pool[i].task_id != task_id and pool[i].prompt != prompt)
        shots = list(islice(allowed, num_shots))
        if len(shots) < num_shots:
            expected = f"at most {len(shots)}, the number of worked examples for {task_id}"
            raise ConfigError.of("shots", got=num_shots, expected=expected)
        chosen.append(shots[::-1] if choice == "nearest" else shots)
    if choice == "nearest-shared":
        chosen = shared_first(chosen)
    return [[pool[i] for i in shots] for shots in chosen]


def _by_similarity(prompts: Sequence[str], pool: Sequence[Shot]) -> Iterable[list[int]]:
    """For each prompt the indices of the pool, most similar first, the lower index on a tie."""
    if not prompts or not pool:
        return [[] for _ in prompts]
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ConfigError(
            f"shot_choice: nearest needs scikit-learn; {how_to_add('evals')}; or use fixed or random"
        ) from error
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
    try:
        pool_vectors = vectorizer.fit_transform([shot.prompt for shot in pool])
    except ValueError:  # the pool has no words: all examples are equally similar
        return [list(range(len(pool))) for _ in prompts]
    similarities = vectorizer.transform(prompts) @ pool_vectors.T
    return ((-row.toarray()[0]).argsort(kind="stable").tolist() for row in similarities)
