"""Python literals in untrusted text: parsed within limits, never executed."""

from __future__ import annotations

import ast
from typing import Any

from treeshare.evals.replies.source import parsed

MAX_CHARACTERS = 20_000


class NoLiteralError(ValueError):
    """A text is no literal; the message says why."""


def literal(text: str) -> Any:  # noqa: ANN401
    """The value of a literal: ``ast.literal_eval``, and every failure of it as one kind of error.

    Raises:
        NoLiteralError: If it is no literal, too long, or nested too deep for the parser.
    """
    if len(text) > MAX_CHARACTERS:
        raise NoLiteralError(f"{len(text)} characters, expected at most {MAX_CHARACTERS}")
    tree = parsed(text.strip())
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        raise NoLiteralError("not one Python expression")
    try:
        return ast.literal_eval(tree.body[0].value)
    except (ValueError, TypeError, MemoryError, RecursionError, OverflowError) as error:
        reason = "it calculates or calls" if isinstance(error, ValueError) else type(error).__name__
        raise NoLiteralError(f"no literal: {reason}") from None


def canonical(value: Any) -> str:  # noqa: ANN401
    """A literal's value as text; equal values give equal texts, whatever the order of a set or a dictionary.

    Raises:
        ValueError: If it holds an integer of more digits than Python writes.
    """
    if isinstance(value, list):
        return f"[{', '.join(map(canonical, value))}]"
    if isinstance(value, tuple):
        return f"({''.join(f'{canonical(item)}, ' for item in value)})"
    if isinstance(value, set):
        return f"{{{', '.join(sorted(map(canonical, value)))}}}" if value else "set()"
    if isinstance(value, dict):
        pairs = sorted(f"{canonical(key)}: {canonical(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, (bool, int, float, complex)):
        number = value.real if isinstance(value, complex) and not value.imag else value
        if isinstance(number, bool) or (isinstance(number, float) and number.is_integer()):
            return repr(int(number))
        return repr(number)
    return repr(value)
