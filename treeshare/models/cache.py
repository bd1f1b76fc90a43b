"""The user's cache: folders of files that are made once, and are never half made.

A list of a folder's own files, written last, says whether it is whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from treeshare import files
from treeshare.errors import one_line
from treeshare.failures import refusing
from treeshare.models.checkpoint import say

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable

_MAX_NAME_BYTES = 100
"""Of a model's name in a folder's; names of folders have 255 bytes at most."""

_LIST = "converted.json"
"""The file that says which others belong to a folder, with their sizes; written last."""


def cache_dir() -> Path:
    """The user's cache: ``$XDG_CACHE_HOME/treeshare`` or ``~/.cache/treeshare``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "treeshare"


def model_folder(name: str, suffix: str) -> Path:
    """The place of what is made of the model ``name``; ``suffix`` says of which, and what."""
    short = one_line(name).encode(errors="replace")[:_MAX_NAME_BYTES].decode(errors="ignore")
    return cache_dir() / "models" / f"{short.replace('/', '_')}-{suffix}"


def made_once(folder: Path, name: str, doing: str, fill: Callable[[Path], None]) -> Path:
    """``folder``, made on first use, never half made.

    Args:
        folder: As ``model_folder`` names it.
        name: What the user calls the model.
        doing: What is said on stderr where it is made: ``converting x.gguf``.
        fill: Writes the files into an empty folder beside it; failures of the disk are to be inside
            ``writing``.

    Raises:
        ModelLoadError: If the cache cannot be written.
    """
    if is_whole(folder):
        return folder
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name[:_MAX_NAME_BYTES]}-", dir=folder.parent))
    say(name, f"{doing} into {folder} (once) ...")
    try:
        fill(partial)
        with writing(folder.parent):
            _write_list(partial)
            partial.chmod(0o755)
            if not is_whole(folder):  # else another process was faster
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def writing(place: Path) -> contextlib.AbstractContextManager[None]:
    """Failures inside are of the cache's disk: full, read-only, not the user's."""
    return refusing(
        f"model cache: cannot write {place}", "make room there, or set XDG_CACHE_HOME to another folder"
    )


def is_whole(folder: Path) -> bool:
    """Whether a folder has all its files, in the sizes they had."""
    try:
        sizes = files.parse_json(files.read_file(folder / _LIST, "model cache"))
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _write_list(folder: Path) -> None:
    """Make the folder's files durable, then list them."""
    sizes = {}
    for path in sorted(folder.iterdir()):
        descriptor = files.open_regular(path)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sizes[path.name] = path.stat().st_size
    files.write_atomically(folder / _LIST, files.dump_json(sizes))
