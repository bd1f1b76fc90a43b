"""The prompt tree: every prefix that two or more prompts share is stored as a single node.

Nodes are numbered in depth-first preorder. So a parent's id is smaller than its children's, a subtree is a
contiguous range of ids, and in ``[p for node in tree.nodes for p in node.prompts]`` the prompts below any
node are contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from treeshare.errors import ConfigError, ShapeError
from treeshare.tree.graph import graph_of_nodes, skeleton_of_graph
from treeshare.tree.invariants import check_nodes
from treeshare.tree.node import Node
from treeshare.tree.radix import Skeleton, discover
from treeshare.tree.stats import TreeStats
from treeshare.tree.tokens import as_token_array

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from treeshare.tree.tokens import TokenArray


@dataclass(frozen=True, slots=True, repr=False)
class PromptTree:
    """Prompts as a tree of shared segments; immutable, compared by content.

    ``from_prompts`` makes a tree in canonical radix form: shared prefixes are maximal, and the children of a
    node begin with distinct tokens. ``fold_tree``, ``truncate_sharing`` and ``from_networkx`` may make trees
    that are not in this form. ``check_invariants`` says what holds for every tree.

    Attributes:
        nodes: Depth-first preorder; ``nodes[0]`` is the root, which may be an empty segment (a forest).
        prompt_nodes: The id of the node at which each prompt ends, by prompt index.
    """

    nodes: tuple[Node, ...]
    prompt_nodes: tuple[int, ...]

    @classmethod
    def from_prompts(cls, prompts: Sequence[Sequence[int] | NDArray[np.integer]]) -> PromptTree:
        """Find every prefix shared by two or more prompts.

        The root holds the prefix common to all prompts; it may be empty. Children are in the order of the
        first prompt below them: depth-first order follows the order of ``prompts`` as far as sharing allows.

        Args:
            prompts: Token ids of each prompt, integers in ``[0, 2**31)``. The list may be empty; prompts may
                be empty, equal, or prefixes of others.

        Raises:
            DataError: If a prompt is not a flat list of integers in range; the message gives its index.
        """
        return cls.from_skeleton(
            discover([as_token_array(ids, f"prompt {i}") for i, ids in enumerate(prompts)])
        )

    @classmethod
    def from_skeleton(cls, skeleton: Skeleton) -> PromptTree:
        """Number the nodes of ``skeleton`` depth-first and freeze them.

        Siblings may start with the same token: no node is merged or split. The tree takes over the skeleton's
        segments, which become read-only.

        Raises:
            AssertionError: If the result breaks ``check_invariants``; check outside input before the call.
        """
        children, order = _ordered_children(skeleton)
        new_ids = {old: new for new, old in enumerate(order)}
        ending_prompts: list[list[int]] = [[] for _ in order]
        for prompt, old in enumerate(skeleton.prompt_nodes):
            ending_prompts[new_ids[old]].append(prompt)
        nodes: list[Node] = []
        for new, old in enumerate(order):
            segment = skeleton.segments[old]
            segment.setflags(write=False)
            parent = nodes[new_ids[skeleton.parents[old]]] if new else None
            nodes.append(
                Node(
                    node_id=new,
                    parent=parent.node_id if parent else -1,
                    start=parent.end if parent else 0,
                    token_ids=segment,
                    children=tuple(new_ids[child] for child in children[old]),
                    prompts=tuple(ending_prompts[new]),
                    depth=parent.depth + 1 if parent else 0,
                )
            )
        tree = cls(tuple(nodes), tuple(new_ids[old] for old in skeleton.prompt_nodes))
        tree.check_invariants()
        return tree

    @classmethod
    def from_networkx(cls, graph: Any) -> PromptTree:  # noqa: ANN401  (networkx is untyped)
        """Read a tree from a ``networkx.DiGraph``, made by ``to_networkx`` or by other code.

        Edges go from parent to child. Nodes may have any names; the tree numbers them anew. Each node needs
        ``token_ids`` (a list of ints) and, where prompts end, ``prompts`` (a list of prompt indices).
        ``start`` is checked if present. Segments are kept as given, even where nodes could be merged.

        Raises:
            DataError: If the graph is not such a tree; the message names the node.
        """
        return cls.from_skeleton(skeleton_of_graph(graph))

    def to_networkx(self) -> Any:  # noqa: ANN401
        """Return a ``networkx.DiGraph`` whose nodes carry ``start``, ``token_ids`` and ``prompts``.

        All attributes are ints and lists of ints, so JSON keeps ``networkx.node_link_data`` of the graph
        unchanged. ``from_networkx`` makes an equal tree of it.
        """
        return graph_of_nodes(self.nodes)

    @property
    def num_prompts(self) -> int:
        """Number of prompts."""
        return len(self.prompt_nodes)

    def path(self, node_id: int) -> tuple[int, ...]:
        """Ids from the root to ``node_id``, both included."""
        ids = []
        while node_id >= 0:
            ids.append(node_id)
            node_id = self.nodes[node_id].parent
        return tuple(reversed(ids))

    def prompt(self, index: int) -> TokenArray:
        """Token ids of prompt ``index``, int32 ``[num_tokens]``, a new array."""
        return np.concatenate([self.nodes[i].token_ids for i in self.path(self.prompt_nodes[index])])

    def prompts(self) -> list[TokenArray]:
        """Token ids of all prompts by prompt index, as new arrays."""
        # Nodes come in preorder, so row[:node.start] holds the path to the node's parent.
        row = np.empty(max(node.end for node in self.nodes), np.int32)
        found: dict[int, TokenArray] = {}
        for node in self.nodes:
            row[node.start : node.end] = node.token_ids
            for prompt in node.prompts:
                found[prompt] = row[: node.end].copy()
        return [found[prompt] for prompt in range(self.num_prompts)]

    def completions_below(self, num_completions: int | Sequence[int] = 1) -> tuple[int, ...]:
        """Number of completions of the prompts in each node's subtree, by node id.

        Args:
            num_completions: Completions per prompt: an integer for all prompts, or a list with an integer
                for each; at least 1.

        Raises:
            ShapeError: If the list's length is not the number of prompts.
            ConfigError: If a number is below 1 or not an integer.
        """
        return self.sums_below(self._counts(num_completions))

    def sums_below(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Sum of ``numbers`` (given by prompt) over the prompts in each node's subtree, by node id."""
        below = [0] * len(self.nodes)
        for node_id, number in zip(self.prompt_nodes, numbers, strict=True):
            below[node_id] += number
        for node in reversed(self.nodes[1:]):
            below[node.parent] += below[node.node_id]
        return tuple(below)

    def stats(self, num_completions: int | Sequence[int] = 1) -> TreeStats:
        """Count nodes and tokens; arguments and errors as for ``completions_below``."""
        counts = self._counts(num_completions)
        depths: list[int] = []
        for node in self.nodes:
            depths.append((depths[node.parent] if node.parent >= 0 else 0) + (node.num_tokens > 0))
        logical = sum(n * self.nodes[i].end for n, i in zip(counts, self.prompt_nodes, strict=True))
        return TreeStats(
            num_prompts=self.num_prompts,
            num_completions=sum(counts),
            num_nodes=len(self.nodes),
            depth=max(depths),
            logical_tokens=logical,
            unique_tokens=sum(node.num_tokens for node in self.nodes),
        )

    def check_invariants(self) -> None:
        """Assert that the nodes are a tree of the prompts; see ``invariants.check_nodes``."""
        check_nodes(self.nodes, self.prompt_nodes)

    def _counts(self, num_completions: int | Sequence[int]) -> list[int]:
        if isinstance(num_completions, int | np.integer):
            given = [num_completions] * self.num_prompts
        else:
            given = list(num_completions)
        if len(given) != self.num_prompts:
            raise ShapeError(f"num_completions: got {len(given)} numbers for {self.num_prompts} prompts")
        counts = []
        for prompt, count in enumerate(given):
            if not isinstance(count, int | np.integer) or count < 1:
                name = f"num_completions of prompt {prompt}"
                raise ConfigError.of(name, got=count, expected="an integer of at least 1")
            counts.append(int(count))
        return counts

    def show(
        self,
        num_completions: int | Sequence[int] = 1,
        *,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        """Display the tree in a notebook, or print it elsewhere.

        Args:
            num_completions: As for ``completions_below``.
            decode: Turns token ids into text; without it, token ids are shown.
        """
        # A notebook and its user expect show() and _repr_html_() on the tree itself, so both import drawing
        # when called. Drawing knows a tree only by the protocol view.Drawable: there is no import circle.
        from treeshare.tree.html import in_notebook, tree_html
        from treeshare.tree.view import render_tree

        if in_notebook():
            from IPython.display import HTML, display

            display(HTML(tree_html(self, num_completions, decode=decode)))
        else:
            print(render_tree(self, num_completions, decode=decode))

    def _repr_html_(self) -> str:
        from treeshare.tree.html import tree_html

        return tree_html(self)

    def __repr__(self) -> str:
        unique = sum(node.num_tokens for node in self.nodes)
        return f"PromptTree({self.num_prompts} prompts, {len(self.nodes)} nodes, {unique} unique tokens)"


def _ordered_children(skeleton: Skeleton) -> tuple[list[list[int]], list[int]]:
    """Children of each node, ordered by the first prompt below each; all nodes in depth-first preorder."""
    children: list[list[int]] = [[] for _ in skeleton.parents]
    for node, parent in enumerate(skeleton.parents):
        if parent >= 0:
            children[parent].append(node)
    first = [len(skeleton.prompt_nodes)] * len(skeleton.parents)
    for prompt, node in enumerate(skeleton.prompt_nodes):
        first[node] = min(first[node], prompt)
    root = skeleton.parents.index(-1)
    for node in reversed(_preorder(root, children)):
        parent = skeleton.parents[node]
        if parent >= 0:
            first[parent] = min(first[parent], first[node])
    for siblings in children:
        siblings.sort(key=first.__getitem__)
    order = _preorder(root, children)
    assert len(order) == len(skeleton.parents), "some nodes do not hang below the root"
    return children, order


def _preorder(root: int, children: list[list[int]]) -> list[int]:
    order, stack = [], [root]
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(reversed(children[node]))
    return order
