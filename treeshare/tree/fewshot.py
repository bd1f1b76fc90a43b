"""Few-shot prompts, built explicitly: preamble, shots, problem.

The parts only make the text. Whole prompts are tokenised and the sharing is found in their tokens: tokenisers
merge across the borders of parts, so parts tokenised one by one would give other tokens than the plain
prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from treeshare.errors import ConfigError
from treeshare.tree.prompt_tree import PromptTree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


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
