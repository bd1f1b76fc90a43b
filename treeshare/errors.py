"""The errors that treeshare raises for a user's mistake.

Every class is also the builtin that a caller would expect, so ``except ValueError`` works. A message is one
line: what, got, expected, remedy. The command line prints that line and exits with status 2.
"""


def one_line(text: object, limit: int = 300) -> str:
    """``text`` for a message, on one line: control characters, which a terminal would act on, are escaped.

    Args:
        text: Any object; ``str(text)`` is used.
        limit: Maximum length of the result; what is cut off becomes an ellipsis.
    """
    whole = str(text)
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole[: limit + 1])
    return safe if len(whole) <= limit else safe[:limit] + "…"


class TreeshareError(Exception):
    """Base class of every error that a user can cause and fix."""


class ConfigError(TreeshareError, ValueError):
    """A parameter is unknown or out of range."""

    @classmethod
    def of(cls, name: str, *, got: object, expected: str, remedy: str = "") -> "ConfigError":
        """Build the one-line message ``name: got X, expected Y; remedy``; a long X is cut."""
        try:
            shown = one_line(repr(got))
        except ValueError:  # Python does not write integers of more than 4,300 digits
            shown = "an integer of thousands of digits"
        return cls(f"{name}: got {shown}, expected {expected}" + (f"; {remedy}" if remedy else ""))


class ShapeError(TreeshareError, ValueError):
    """Tensors or arrays do not fit together."""


class UnsupportedModelError(TreeshareError, NotImplementedError):
    """A model needs a feature that treeshare does not implement; the message names the feature."""


class ModelLoadError(TreeshareError, OSError):
    """A model could not be found or read."""


class DataError(TreeshareError, ValueError):
    """A file from outside (task data, workload, journal) is missing, malformed or inconsistent."""


class BudgetError(TreeshareError, MemoryError):
    """The KV byte budget cannot hold even one sequence; the message gives the bytes needed."""


class RunMismatchError(TreeshareError, ValueError):
    """A run directory belongs to a run with other parameters; the message says what differs."""


class RunLockedError(TreeshareError, OSError):
    """Another process is writing to this run directory."""


class WorkerError(TreeshareError, RuntimeError):
    """Worker processes of a run ended too many times."""


class SandboxUnavailableError(TreeshareError, RuntimeError):
    """This machine cannot isolate programs; the message says which package to install."""
