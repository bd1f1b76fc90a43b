"""The program in a chat model's reply: what a person who reads it would run."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from treeshare.evals.replies.blocks import Block, python_blocks
from treeshare.evals.replies.reasoning import final_answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.evals.replies.source import Source, Statement

_SHOWS = re.compile(
    r"\b(?:examples?|usage|use|used|tests?|testing|tested|try|run|running|call|called|check|samples?|outputs?|prints?"
    r"|verify|instance|demo|generates?|brute|compare|stub|signature)\b",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(
    r"\b(?:final|answer|correct|corrected|fixed|fix|solution|improved|better|complete|full|instead)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a task's tests need of a program.

    Attributes:
        names: Functions and classes that they use; ``Solution``'s methods count.
        reads_stdin: Whether it is a program that reads standard input.
    """

    names: frozenset[str] = field(default_factory=frozenset)
    reads_stdin: bool = False


def program_in(reply: str, wanted: Wanted) -> str:
    """The program that a reply gives, reasoning left out.

    It is the last version: the last block of Python that defines one of the names, or that is a whole program
    where it is to read standard input. What it needs and does not define comes from other blocks, the latest
    before it; a function that a later block gives alone takes the place of its older version. What only shows
    how to call it, tests it, or is no Python, is left out. Without a fence it is the code between the words.

    Returns:
        The program; the whole answer if no code is in it, and nothing if the reasoning never ended.
    """
    answer = final_answer(reply)
    answer = answer.replace("\r\n", "\n").replace("\r", "\n")
    blocks = python_blocks(answer)
    if not blocks:
        return answer if _has_no_fence(answer) else ""
    chosen = _last_reader(blocks) if wanted.reads_stdin else _last_definition(blocks, wanted.names)
    return _assembled([block.source for block in blocks], chosen, wanted)


def _has_no_fence(answer: str) -> bool:
    return "```" not in answer and "~~~" not in answer


def _last_definition(blocks: Sequence[Block], names: frozenset[str]) -> int:
    """The last block that defines one of the names; without names, the last that defines anything new."""
    sources = [block.source for block in blocks]
    if not names:
        return _last_definition_of_any(sources)
    defining = [i for i, source in enumerate(sources) if source.defines & names]
    for i in reversed(defining):
        # Between words an assignment may be part of them.
        if blocks[i].is_fenced or sources[i].functions & names or i == defining[0]:
            return i
    for i in reversed(range(len(sources))):
        if sources[i].returns or sources[i].tree is None:
            return i
    return _last_definition_of_any(sources)


def _last_definition_of_any(sources: Sequence[Source]) -> int:
    known: set[str] = set()
    chosen = 0
    for i, source in enumerate(sources):
        shows = bool(source.needs & known) and not source.only_defines
        is_test = any(name.startswith("test") for name in source.defines)
        if source.tree is None or (source.has_statements and not shows and not (is_test and i)):
            chosen = i
        known |= source.binds
    return chosen


def _last_reader(blocks: Sequence[Block]) -> int:
    """The last block that is a whole program, alone or with what stands before it."""
    known: set[str] = set()
    chosen: int | None = None
    is_whole = False
    for i, block in enumerate(blocks):
        source = block.source
        uses_earlier = bool(source.needs & known)
        known |= source.binds
        if source.reads and not (source.replaces_stdin and chosen is not None):
            if source.acts or not is_whole:
                chosen, is_whole = i, source.acts
        elif source.acts and (source.prints or uses_earlier):
            if is_whole and (uses_earlier or not block.is_fenced):
                continue
            if chosen is None or not is_whole or not _is_shown(block):
                chosen, is_whole = i, uses_earlier or is_whole
        elif chosen is None:
            chosen = i
    assert chosen is not None
    return chosen


def _is_shown(block: Block) -> bool:
    """Whether the words before a block say that it only shows something."""
    return bool(_SHOWS.search(block.lead_in)) and not _CONCLUDES.search(block.lead_in)


def _assembled(sources: Sequence[Source], chosen: int, wanted: Wanted) -> str:
    """The chosen block with its helpers in front, and with newer versions of its functions."""
    program = sources[chosen]
    newer = _newer_functions(sources, chosen)
    helpers = _helpers(sources, chosen, wanted, newer)
    if not helpers and not newer:
        return program.text
    lines = program.text.split("\n")
    futures: list[str] = []
    for statement in reversed(program.statements):
        if statement.is_future_import:
            futures.insert(0, statement.text)
            lines[statement.first : statement.end] = []
        renewed = statement.binds & newer.keys() if statement.defines else frozenset()
        if renewed:
            keeps = statement.binds - renewed  # an import of several names
            texts = dict.fromkeys(newer[name].text.rstrip("\n") for name in sorted(renewed))
            lines[statement.end if keeps else statement.first : statement.end] = texts
    futures += [one.text for one in helpers if one.is_future_import and one.text not in futures]
    return "".join([*futures, *(one.text for one in helpers if not one.is_future_import), "\n".join(lines)])


def _newer_functions(sources: Sequence[Source], chosen: int) -> dict[str, Statement]:
    """Functions and classes of the chosen block that a later block of nothing but definitions gives again."""
    own = {name for one in sources[chosen].statements if one.defines for name in one.binds}
    newer: dict[str, Statement] = {}
    for source in sources[chosen + 1 :]:
        if source.only_defines:
            for statement in source.statements:
                newer |= dict.fromkeys(statement.binds & own & source.defines, statement)
    return newer


def _helpers(
    sources: Sequence[Source], chosen: int, wanted: Wanted, newer: dict[str, Statement]
) -> list[Statement]:
    """Statements of other blocks that bind what the program needs, in their order."""
    places: dict[str, list[int]] = {}
    for i, source in enumerate(sources):
        for name in source.binding if i != chosen else ():
            places.setdefault(name, []).append(i)
    left = sources[chosen].needs | wanted.names | {name for one in newer.values() for name in one.needs}
    seen = sources[chosen].binds | sources[chosen].defines
    taken: dict[tuple[int, int], Statement] = {}
    while left := left - seen:
        seen = seen | left
        needed: set[str] = set()
        found = {name if name in places else "*" for name in left}
        for name in found & places.keys():
            at = bisect_left(places[name], chosen)
            place = places[name][at - 1 if at else 0]
            for i in _statements_for(sources[place], name, wanted):
                statement = sources[place].statements[i]
                if (place, i) not in taken:
                    taken[place, i] = statement
                    needed |= statement.needs
        left = frozenset(needed)
    return [taken[key] for key in sorted(taken)]


def _statements_for(source: Source, name: str, wanted: Wanted) -> Sequence[int]:
    """The statements of a block that make a name what it is there."""
    binding = source.binding[name]
    if source.statements[binding[-1]].defines:
        return binding[-1:]
    if wanted.reads_stdin and source.reads:
        return range(len(source.statements))  # what is read, is read in order
    return sorted({*binding, *source.changing.get(name, ())})
