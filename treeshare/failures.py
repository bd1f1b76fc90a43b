"""What libraries raise at files from outside, made one line that names the file."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from treeshare.errors import ModelLoadError, TreeshareError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLAIN = (OSError, ValueError, RuntimeError)
"""Errors whose text says by itself what is wrong; that of others, such as ``KeyError``, needs its type."""


def error_line(error: BaseException) -> str:
    """An error's text on one line, with its type where that is needed to understand it."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    if not text:
        return kind
    return one_line(
        text if isinstance(error, _PLAIN) and type(error) is not RecursionError else f"{kind}: {text}"
    )


def is_failure(error: BaseException) -> bool:
    """Whether a library failed; false for interrupts and for assertions of treeshare's own.

    A panic of a library in Rust is no ``Exception``: ``pyo3_runtime.PanicException``.
    """
    if not isinstance(error, Exception):
        return type(error).__name__ == "PanicException"
    return not (isinstance(error, AssertionError) and _raised_here(error))


@contextlib.contextmanager
def refusing(place: str, remedy: str = "") -> Iterator[None]:
    """Whatever a library raises inside becomes a ``ModelLoadError``: ``place: its text; remedy``.

    Errors of treeshare's, interrupts and assertions of treeshare's own pass unchanged.

    Args:
        place: What was read; ends up before the message.
        remedy: What the user can do.
    """
    try:
        yield
    except TreeshareError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        raise ModelLoadError(f"{place}: {error_line(error)}" + (f"; {remedy}" if remedy else "")) from error


def _raised_here(error: BaseException) -> bool:
    """Whether an error comes from a line of treeshare's own."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = str(trace.tb_frame.f_globals.get("__name__", "")) if trace is not None else ""
    return name.partition(".")[0] == "treeshare"
