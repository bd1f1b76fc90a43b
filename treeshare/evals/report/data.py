"""What the page's script reads: JSON in the page, from which it builds text, never markup.

Each problem's completions are a block of their own, parsed when the problem is opened: a page with tens of
thousands of completions opens as fast as one with a few.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from treeshare.evals.judged import JudgedCompletion, JudgedRun
    from treeshare.evals.report.timeline import Timeline
    from treeshare.runs.tree_file import TreeFile

NOT_CHECKED = "not checked"

_COLOURS = {
    "passed": "good",
    "wrong answer": "wrong",
    "runtime error": "error",
    "timeout": "slow",
    "memory limit": "big",
    "output limit": "big",
    "process limit": "big",
    "network": "bad",
    "file access": "bad",
    "forbidden": "bad",
    NOT_CHECKED: "none",
}


def script_json(element_id: str, value: object) -> str:
    """A data block for the page; no content can end it early or become markup.

    Everything but ASCII is escaped, and so are the characters that mean something in HTML: a completion may
    hold ``</script>``, ``<!--``, line separators and lone surrogates.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{element_id}">{text}</script>'


def verdict_of(completion: JudgedCompletion) -> str:
    """How it ended, in words."""
    return NOT_CHECKED if completion.result is None else completion.result.verdict


def colour(verdict: str) -> str:
    """A class of the style sheet; a verdict itself never becomes one."""
    return _COLOURS.get(verdict, "other")


def verdict_counts(completions: Iterable[JudgedCompletion]) -> dict[str, int]:
    """How many ended how: those that passed first, then the most frequent."""
    counts = Counter(map(verdict_of, completions))
    return dict(sorted(counts.items(), key=lambda pair: (pair[0] != "passed", -pair[1], pair[0])))


def summaries(run: JudgedRun) -> list[dict[str, Any]]:
    """One row per problem, in the run's order."""
    return [
        {
            "id": task_id,
            "checked": sum(completion.result is not None for completion in completions),
            "right": sum(
                completion.result is not None and completion.result.passed for completion in completions
            ),
            "n": len(completions),
            "tokens": sum(len(completion.record.token_ids) for completion in completions),
            "verdicts": [[name, count, colour(name)] for name, count in verdict_counts(completions).items()],
        }
        for task_id, completions in run.problems.items()
    ]


def completions_of(completions: Sequence[JudgedCompletion]) -> list[dict[str, Any]]:
    """A problem's completions, those with the same text and verdict as one; the right ones first."""
    groups: dict[tuple[str, str, str], list[JudgedCompletion]] = defaultdict(list)
    for completion in completions:
        detail = "" if completion.result is None else completion.result.detail
        groups[completion.record.completion, verdict_of(completion), detail].append(completion)
    rows = []
    for (text, verdict, detail), members in sorted(groups.items(), key=lambda pair: pair[0][1] != "passed"):
        record = members[0].record
        num_tokens = len(record.token_ids)
        mean = math.exp(min(record.cumulative_logprob / num_tokens, 0.0)) if num_tokens else None
        rows.append(
            {
                "indices": [member.record.completion_index for member in members],
                "text": text,
                "verdict": verdict,
                "colour": colour(verdict),
                "detail": detail,
                "tokens": num_tokens,
                "finish": record.finish_reason,
                "confidence": mean,
                "answer": None if members[0].result is None else members[0].result.answer,
            }
        )
    return rows


def tree_nodes(run: JudgedRun, tree: TreeFile, timeline: Timeline | None) -> list[dict[str, Any]]:
    """The tree's nodes with what passed through them.

    Seconds are shares of what was measured: the seconds of prefill by prompt tokens, those of decoding by
    generated tokens. A step computes many nodes at once, and every row of it costs the same.
    """
    problems = list(run.problems.values())
    rows: list[dict[str, Any]] = []
    for node in tree.nodes:
        here = [
            completion for place in node.problems if place < len(problems) for completion in problems[place]
        ]
        rows.append(
            {
                "parent": node.parent,
                "start": node.start,
                "tokens": node.num_tokens,
                "text": node.text,
                "problems": node.problems,
                "completions": len(here),
                "generated": sum(len(completion.record.token_ids) for completion in here),
            }
        )
    for row in reversed(rows[1:]):
        parent = rows[row["parent"]]
        parent["completions"] += row["completions"]
        parent["generated"] += row["generated"]
    num_tokens, num_generated = sum(row["tokens"] for row in rows), rows[0]["generated"] if rows else 0
    for row in rows:
        row["prefill_s"] = row["decode_s"] = None
        if timeline is not None and num_tokens and num_generated:
            row["prefill_s"] = round(timeline.prefill_s * row["tokens"] / num_tokens, 4)
            row["decode_s"] = round(timeline.decode_s * row["generated"] / num_generated, 4)
    return rows
