"""Models of the hub: whether it answers, and what its cache on this machine has where it does not."""

from __future__ import annotations

import contextlib
from pathlib import Path

from treeshare.errors import ModelLoadError, one_line
from treeshare.failures import refusing
from treeshare.hub_state import offline_by, why_silent
from treeshare.models.checkpoint import INDEX, say
from treeshare.models.folder import CONFIG, read_object
from treeshare.models.tensor_names import shortened
from treeshare.models.tokenizer import has_tokenizer

_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
"""Files of a model that are fetched: no pickles, no code."""


def hub_source(name: str, *, whole: bool = True, revision: str | None = None) -> str:
    """Where a hub id is loaded from: the hub, or the cache's folder where the hub is not asked.

    Args:
        name: The id.
        whole: Whether weights are to be loaded.
        revision: Branch, tag or commit; by default the main branch.

    Raises:
        ModelLoadError: If it is not there, with the command that fetches it.
    """
    variable = offline_by()
    reason = f"{variable} is set" if variable else why_silent()
    if not reason:
        return name if revision is None else _fetched(name, revision)
    why = f"the hub was not asked ({reason})" if variable else f"the hub does not answer ({one_line(reason)})"
    remedy = f"where there is a network, fetch it with: hf download {one_line(name)}"
    if revision is not None:
        remedy += f" --revision {one_line(revision)}"
    snapshot = _snapshot(name, revision)
    if snapshot is None:
        raise ModelLoadError(
            f"model: {one_line(name)} is not in the hub's cache on this machine, and {why}; {remedy}"
        )
    lost = _lost_weights(snapshot) if whole else []
    if lost:
        raise ModelLoadError(
            f"model: {one_line(name)}: the hub's cache on this machine lacks {shortened(lost)}, and {why}; "
            f"{remedy}"
        )
    if not has_tokenizer(snapshot):
        say(name, f"its snapshot in the hub's cache has no tokenizer, and {why}; {remedy}")
    return str(snapshot)


def _fetched(name: str, revision: str) -> str:
    """The folder of a revision of a model, fetched as far as the cache lacks it."""
    from huggingface_hub import snapshot_download

    with refusing(f"model: cannot fetch {one_line(name)} at revision {one_line(revision)}"):
        return str(snapshot_download(name, revision=revision, allow_patterns=_PATTERNS))


def _snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of a model's last fetched revision in the cache; None if it has no configuration there."""
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(ValueError):  # no id of a model
        found = try_to_load_from_cache(name, CONFIG, revision=revision)
        if isinstance(found, str) and Path(found).is_file():
            return Path(found).parent
    return None


def _lost_weights(snapshot: Path) -> list[str]:
    """Files of weights that a snapshot names and has not."""
    if any(snapshot.glob("*.safetensors")) and not (snapshot / INDEX).is_file():
        return []
    if not (snapshot / INDEX).is_file():
        return ["weights (.safetensors)"]
    places = read_object(snapshot / INDEX).get("weight_map")
    names = {str(name) for name in places.values()} if isinstance(places, dict) else set()
    return sorted(name for name in names if not (snapshot / name).is_file())
