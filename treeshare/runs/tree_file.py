"""The run's prompt tree as a file, so that a report can draw it without the model and the task's data."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from treeshare.errors import DataError, one_line
from treeshare.files import dump_json, parse_json, read_file, write_atomically
from treeshare.tree import PromptTree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

TREE_NAME = "tree.json"


class TreeNode(BaseModel):
    """A node of the prompt tree.

    Attributes:
        parent: Index of the parent in ``TreeFile.nodes``; -1 for the root, which is first.
        start: Position in the prompt of the segment's first token.
        num_tokens: Length of the segment.
        text: Text of the segment; None if the model has no tokenizer. A character whose bytes are split
            between two segments appears as a replacement character in both.
        problems: Indices in the manifest's ``task_ids`` of the problems whose prompt ends here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parent: int
    start: NonNegativeInt
    num_tokens: NonNegativeInt
    text: str | None
    problems: list[NonNegativeInt]


class TreeFile(BaseModel):
    """All nodes, depth-first: parents come before their children."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    nodes: list[TreeNode]

    @classmethod
    def of_prompts(
        cls, prompts: Sequence[Sequence[int]], decode: Callable[[Sequence[int]], str] | None
    ) -> TreeFile:
        """Make the tree of ``prompts``; ``decode`` turns token ids into text."""
        return cls(
            nodes=[
                TreeNode(
                    parent=node.parent,
                    start=node.start,
                    num_tokens=node.num_tokens,
                    text=None if decode is None else decode(node.token_ids.tolist()),
                    problems=list(node.prompts),
                )
                for node in PromptTree.from_prompts(prompts).nodes
            ]
        )

    @classmethod
    def read(cls, path: Path) -> TreeFile | None:
        """Read a tree; None if there is no file, as in runs of older versions.

        Raises:
            DataError: If the file cannot be read or is not a tree.
        """
        if not os.path.lexists(path):
            return None
        where, content = f"tree: {one_line(path)}", read_file(path, "tree")
        try:
            tree = cls.model_validate(parse_json(content), strict=True)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            field = one_line(".".join(map(str, first["loc"])), 60)
            raise DataError(f"{where}: {field}: {one_line(first['msg'])}; remove the file") from error
        except ValueError as error:
            raise DataError(f"{where}: not JSON: {one_line(error)}; remove the file") from error
        for place, node in enumerate(tree.nodes):
            if not (node.parent == -1 if place == 0 else 0 <= node.parent < place):
                raise DataError(f"{where}: node {place} has no parent before it; remove the file")
        return tree

    def write(self, path: Path) -> None:
        """Write atomically; removes what a process that was killed while writing left behind.

        Raises:
            DataError: If the directory cannot be written.
        """
        with contextlib.suppress(OSError):
            for partial in path.parent.glob(f".{path.name}-{'[0-9a-f]' * 8}"):
                partial.unlink()
        write_atomically(path, dump_json(self.model_dump()) + b"\n")
