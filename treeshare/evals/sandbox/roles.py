"""What runs inside a sandboxed process: the files that a role needs, compiled."""

from __future__ import annotations

import enum
import functools
import marshal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType

_FOLDER = Path(__file__).parent

LAUNCHER = (
    "import marshal, os, sys\n"
    "file = int(sys.argv.pop(1))\n"
    "parts = marshal.loads(os.pread(file, 1 << 22, 0))\n"
    "os.close(file)\n"
    "while parts: exec(parts.pop(0))\n"
)
"""Runs the code of a role, from the descriptor that is the first argument. Compiling it each time would take
longer than most programs run."""


class Role(enum.StrEnum):
    """What a process is for."""

    PROGRAM = "program"
    CANDIDATE = "candidate"
    EXAMINER = "examiner"


_FILES = {
    Role.PROGRAM: ("harness",),
    Role.CANDIDATE: ("harness", "encoder", "decoder", "proxies", "candidate"),
    Role.EXAMINER: ("harness", "encoder", "decoder", "proxies", "candidate", "examiner"),
}


@functools.cache
def role_code(role: Role, *, with_confine: bool) -> bytes:
    """The code of a role for ``LAUNCHER``: its files in their order, as one namespace, and its main function.

    Args:
        role: Which.
        with_confine: Whether ``confine.py`` comes first, which takes the rights away that no other program
            has taken away.
    """
    names = ("confine",) * with_confine + _FILES[role]
    codes = [_compiled(_FOLDER / f"{name}.py") for name in names]
    codes.append(compile(f"{role}_main()", "start", "exec", dont_inherit=True))
    return marshal.dumps(codes)


@functools.cache
def codec_code() -> bytes:
    """The code of the module ``values``, which reads what a function is given and writes what it returns."""
    return marshal.dumps(_compiled(_FOLDER.parent / "values.py"))


def _compiled(path: Path) -> CodeType:
    """Compiled here, as it takes milliseconds: the sandbox runs the same interpreter."""
    text = path.read_text(encoding="utf-8")
    return compile(text, path.name, "exec", dont_inherit=True, optimize=2)
