"""A hook of mkdocs: pages of the site that lie outside ``docs``, and links to files that are no pages.

In the repository every link is relative to its file and leads to the file. In the site, links to pages lead
to the pages, and links to other files become the file's path in the repository.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(f"tasks/{p.name}" for p in ROOT.glob("tasks/*.md")),
)
"""Pages by their paths in the repository, which they keep in the site."""

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:  # noqa: ANN401
    """Add the pages from outside ``docs``."""
    from mkdocs.structure.files import File

    for path in OUTSIDE:
        files.append(File.generated(config, path, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:  # noqa: ANN401
    """Make a page's links the site's."""
    return site_links(markdown, page.file.src_uri)


def site_links(markdown: str, uri: str) -> str:
    """A page's text with the site's links.

    Args:
        markdown: As it stands in the repository.
        uri: The page's place in the site.
    """
    file = ROOT / uri if uri in OUTSIDE else ROOT / "docs" / uri

    def change(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = (file.parent / target).resolve()
        if ":" in target or not path.exists():
            return found[0]
        inside = path.relative_to(ROOT)
        if inside.parts[0] == "docs":
            place = inside.relative_to("docs").as_posix()
        elif inside.as_posix() in OUTSIDE:
            place = inside.as_posix()
        else:
            shown = f"`{inside.as_posix()}`"
            return shown if text.strip("`") in (path.name, inside.as_posix()) else f"{text} ({shown})"
        if path.is_dir():
            return text
        return f"[{text}]({os.path.relpath(place, os.path.dirname(uri) or '.')}{anchor})"

    return _LINK.sub(change, markdown)
