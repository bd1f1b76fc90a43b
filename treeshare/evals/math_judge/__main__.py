"""``python -m treeshare.evals.math_judge GOLD ANSWER``: what each layer finds."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from treeshare.errors import one_line
from treeshare.evals.math_judge.answers import Quantity, Unread, Value
from treeshare.evals.math_judge.compare import kind_of, shown
from treeshare.evals.math_judge.judge import MathJudge

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the layers' findings; exit status 0 if the answer is right, 1 if it is not."""
    parser = argparse.ArgumentParser(
        prog="python -m treeshare.evals.math_judge",
        description="Judge an answer, and show what each layer of the judge finds.",
    )
    parser.add_argument("gold", help="the right answer, LaTeX or plain text")
    parser.add_argument("answer", help="the answer to be judged")
    given = parser.parse_args(arguments)
    with MathJudge() as judge:
        began = time.perf_counter()
        found = judge.judge(given.gold, given.answer)
        took_ms = 1000 * (time.perf_counter() - began)
        read = [judge.read(text) for text in (given.gold, given.answer)]
        rows = [
            ("normal form", *(one_line(answer.normal, 60) for answer in read)),
            ("type", *(kind_of(answer.value) for answer in read)),
            ("value", *(described(answer.value) for answer in read)),
        ]
        width = max(len(row[1]) for row in rows)
        print(f"{'':12} {'gold':{width}}  answer")
        for name, gold, answer in rows:
            print(f"{name:12} {gold:{width}}  {answer}")
        verdict = "right" if found.right else "wrong" if found.is_decided else "undecided"
        asked = "" if judge.symbols.helper.num_started else "; symbols were not needed"
        print(f"{verdict}, by {found.layer}: {found.reason} ({took_ms:.1f} ms{asked})")
    return 0 if found.right else 1


def described(value: Value) -> str:
    """A value in one line."""
    if isinstance(value, Unread):
        return f"not understood: {value.reason}"
    if isinstance(value, Quantity):
        parts = [shown(value.node) if value.base is None else f"{value.digits} in base {value.base}"]
        parts += ["percent"] if value.is_percent else []
        parts += [f"unit {value.unit}"] if value.unit else []
        parts += [f"called {value.name}"] if value.name else []
        return ", ".join(parts)
    return one_line(value, 100)


if __name__ == "__main__":
    sys.exit(main())
