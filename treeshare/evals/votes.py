"""Votes for equivalent answers: which answers count as one, and which spelling represents them.

Both depend on the answers alone, not on their order.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


def answer_classes(
    answers: Iterable[str],
    *,
    same: Callable[[str, str], bool] | None = None,
    alike: Callable[[str, str], bool] | None = None,
) -> list[list[str]]:
    """Group distinct answers into classes; answers and classes are sorted by length and text.

    ``same`` makes the classes. ``alike`` then merges classes of which every two are alike: ``5`` and ``5 cm``
    become one class; ``5``, ``5 cm`` and ``5 m`` stay three, because the unit of ``5`` is not known.

    Args:
        answers: Any number of times each.
        same: An equivalence; equality by default. Each answer is compared with one of each class.
        alike: Symmetric; need not be transitive.
    """
    classes: list[list[str]] = []
    for answer in sorted(set(answers), key=_rank):
        found = next((members for members in classes if same is not None and same(members[0], answer)), None)
        if found is None:
            classes.append([answer])
        else:
            found.append(answer)
    return classes if alike is None else _joined(classes, alike)


def representatives(answers: Sequence[str | None], classes: Iterable[Sequence[str]]) -> list[str | None]:
    """For each answer the one that represents its class: the most frequent, then shortest, then first."""
    counts = Counter(answer for answer in answers if answer is not None)
    chosen = {
        answer: min(members, key=lambda member: (-counts[member], *_rank(member)))
        for members in classes
        for answer in members
    }
    return [None if answer is None else chosen[answer] for answer in answers]


def _rank(answer: str) -> tuple[int, str]:
    return len(answer), answer


def _joined(classes: list[list[str]], alike: Callable[[str, str], bool]) -> list[list[str]]:
    """Classes that hang together are one, if each is like each of the others."""
    places = range(len(classes))
    like = {
        place: {other for other in places if other != place and alike(classes[place][0], classes[other][0])}
        for place in places
    }
    joined, seen = [], set[int]()
    for place in places:
        if place in seen:
            continue
        component, open_places = {place}, [place]
        while open_places:
            new = like[open_places.pop()] - component
            component |= new
            open_places += new
        seen |= component
        if all(like[member] >= component - {member} for member in component):
            joined.append(sorted((answer for member in component for answer in classes[member]), key=_rank))
        else:
            joined += [classes[member] for member in sorted(component)]
    return joined
