"""The prompt tree: every prefix that prompts share is one node, found by itself.

Nodes are numbered in depth-first preorder, so a parent's id is below its children's, a subtree is a
contiguous range of ids, and ``[p for node in tree.nodes for p in node.prompts]`` lists the prompts so that
each node's are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from treeshare.errors import ConfigError, ShapeError
from treeshare.tree.radix import Skeleton, discover
from treeshare.tree.stats import TreeStats
from treeshare.tree.tokens import as_token_array

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from treeshare.tree.tokens import TokenArray


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A vertex of a ``PromptTree`` and its segment of token ids.

    Attributes:
        node_id: Index in ``PromptTree.nodes``.
        parent: Id of the parent, -1 for the root.
        start: Position in the prompt of the segment's first token.
        token_ids: The segment, int32 ``[num_tokens]``, read-only; only the root's may be empty.
        children: Ids, in the order of the first prompt below each.
        prompts: Indices of the prompts that end exactly here, ascending.
        depth: Edges from the root.
    """

    node_id: int
    parent: int
    start: int
    token_ids: TokenArray = field(repr=False)
    children: tuple[int, ...]
    prompts: tuple[int, ...]
    depth: int

    @property
    def num_tokens(self) -> int:
        """Length of the segment."""
        return len(self.token_ids)

    @property
    def end(self) -> int:
        """Position in the prompt just past the segment's last token."""
        return self.start + len(self.token_ids)

    def _key(self) -> tuple[object, ...]:
        return (self.node_id, self.parent, self.start, self.token_ids.tobytes(), self.children, self.prompts)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Node) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())


@dataclass(frozen=True, slots=True, repr=False)
class PromptTree:
    """Prompts as a tree of shared segments; immutable, compared by content.

    Make one with ``from_prompts``. The result is in canonical radix form (maximal shared prefixes, children
    beginning with distinct tokens); ``fold_tree``, ``truncate_sharing`` and ``from_networkx`` may give trees
    that are not, which hold the same prompts and the same structural invariants (``check_invariants``).

    Attributes:
        nodes: Depth-first preorder; ``nodes[0]`` is the root, which may be an empty segment (a forest).
        prompt_nodes: The id of the node at which each prompt ends, by prompt index.
    """

    nodes: tuple[Node, ...]
    prompt_nodes: tuple[int, ...]

    @classmethod
    def from_prompts(cls, prompts: Sequence[Sequence[int] | NDArray[np.integer]]) -> PromptTree:
        """Find every prefix shared by two or more prompts.

        The root holds the prefix common to all, possibly empty. Children come in the order of the first
        prompt below them, so depth-first order follows the given order as far as sharing allows.

        Args:
            prompts: Token ids of each prompt, integers in ``[0, 2**31)``. No prompts, empty prompts,
                duplicates and prompts that are prefixes of others are all fine.

        Raises:
            DataError: If a prompt is not a flat row of integers in range; the message gives its index.
        """
        return cls.from_skeleton(
            discover([as_token_array(ids, f"prompt {i}") for i, ids in enumerate(prompts)])
        )

    @classmethod
    def from_skeleton(cls, skeleton: Skeleton) -> PromptTree:
        """Number the nodes of ``skeleton`` depth-first and freeze them.

        Siblings may start with the same token; no node is merged or split. Takes over the skeleton's segments
        (they become read-only). Breaking ``check_invariants`` is an ``AssertionError``: a caller with input
        from outside checks it first.
        """
        children, order = _ordered_children(skeleton)
        new_ids = {old: new for new, old in enumerate(order)}
        ending: list[list[int]] = [[] for _ in order]
        for prompt, old in enumerate(skeleton.prompt_nodes):
            ending[new_ids[old]].append(prompt)
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
                    prompts=tuple(ending[new]),
                    depth=parent.depth + 1 if parent else 0,
                )
            )
        tree = cls(tuple(nodes), tuple(new_ids[old] for old in skeleton.prompt_nodes))
        tree.check_invariants()
        return tree

    @classmethod
    def from_networkx(cls, graph: Any) -> PromptTree:  # noqa: ANN401  (networkx is untyped)
        """Read a tree from a ``networkx.DiGraph`` as ``to_networkx`` writes it, or as others do.

        Edges go from parent to child and node names are free; ids are assigned anew. Each node needs
        ``token_ids`` (a list of ints) and, where prompts end, ``prompts`` (a list of prompt indices).
        ``start`` is checked if present. The given segments are kept as they are, even where a node could be
        merged with another.

        Raises:
            DataError: If the graph is not such a tree; one line that names the node.
        """
        from treeshare.tree.graph import skeleton_of_graph

        return cls.from_skeleton(skeleton_of_graph(graph))

    def to_networkx(self) -> Any:  # noqa: ANN401
        """Return a ``networkx.DiGraph`` whose nodes carry ``start``, ``token_ids`` and ``prompts``.

        All attributes are ints and lists of ints: ``networkx.node_link_data`` of it goes through JSON
        unchanged, and ``from_networkx`` gives an equal tree back.
        """
        from treeshare.tree.graph import graph_of_tree

        return graph_of_tree(self)

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
        """Token ids of one prompt, int32 ``[num_tokens]``, a fresh array."""
        return np.concatenate([self.nodes[i].token_ids for i in self.path(self.prompt_nodes[index])])

    def prompts(self) -> list[TokenArray]:
        """Token ids of all prompts in their given order; costs one copy of the logical tokens."""
        # In preorder, row[:node.start] always holds the path of the node's parent.
        row = np.empty(max(node.end for node in self.nodes), np.int32)
        found: dict[int, TokenArray] = {}
        for node in self.nodes:
            row[node.start : node.end] = node.token_ids
            for prompt in node.prompts:
                found[prompt] = row[: node.end].copy()
        return [found[prompt] for prompt in range(self.num_prompts)]

    def completions_below(self, num_completions: int | Sequence[int] = 1) -> tuple[int, ...]:
        """Completions whose path goes through each node, by node id.

        Args:
            num_completions: Completions of every prompt (one number) or of each (one per prompt), at least 1.

        Raises:
            ShapeError: If there are not as many numbers as prompts.
            ConfigError: If a number is below 1 or not an integer.
        """
        return self.sums_below(self._counts(num_completions))

    def sums_below(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Sums of the prompts' ``numbers`` over each node's subtree, by node id."""
        below = [0] * len(self.nodes)
        for node_id, number in zip(self.prompt_nodes, numbers, strict=True):
            below[node_id] += number
        for node in reversed(self.nodes[1:]):
            below[node.parent] += below[node.node_id]
        return tuple(below)

    def stats(self, num_completions: int | Sequence[int] = 1) -> TreeStats:
        """Count what is shared; arguments and errors as for ``completions_below``."""
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
        """Assert the structure, not the radix form; costs one pass over nodes and prompts.

        Ids are depth-first preorder; segments are read-only int32, contiguous in position and, below the
        root, not empty; children are in the order of their first prompts; each prompt ends at exactly one
        node, and prompts end at every leaf (but the lone root of a tree without prompts).
        """
        assert self.nodes, "a tree has at least its root"
        sizes = [1] * len(self.nodes)
        first = [min(node.prompts, default=self.num_prompts) for node in self.nodes]
        children: list[list[int]] = [[] for _ in self.nodes]
        for node in reversed(self.nodes):
            self._check_node(node)
            children[node.node_id].reverse()
            ids, expected = children[node.node_id], node.node_id + 1
            for child in ids:
                assert child == expected, f"node {child}: not in depth-first preorder"
                expected += sizes[child]
            assert list(node.children) == ids, f"node {node.node_id}: children {node.children} are {ids}"
            assert ids == sorted(ids, key=first.__getitem__), f"node {node.node_id}: children out of order"
            if node.parent >= 0:
                children[node.parent].append(node.node_id)
                sizes[node.parent] += sizes[node.node_id]
                first[node.parent] = min(first[node.parent], first[node.node_id])
        ending = sorted((prompt, node.node_id) for node in self.nodes for prompt in node.prompts)
        assert ending == list(enumerate(self.prompt_nodes)), "prompts and nodes disagree"

    def _check_node(self, node: Node) -> None:
        name, ids = f"node {node.node_id}", node.token_ids
        assert node is self.nodes[node.node_id], f"{name}: id is not its index"
        assert ids.dtype == np.int32, f"{name}: segment of {ids.dtype}"
        assert not ids.flags.writeable, f"{name}: segment can be written to"
        assert node.children or node.prompts or self.num_prompts == 0, (
            f"{name}: a leaf at which no prompt ends"
        )
        assert list(node.prompts) == sorted(node.prompts), f"{name}: prompts out of order"
        if node.node_id == 0:
            assert (node.parent, node.start, node.depth) == (-1, 0, 0), "the root's place"
            return
        assert 0 <= node.parent < node.node_id, f"{name}: parent {node.parent} does not come before it"
        parent = self.nodes[node.parent]
        assert (node.start, node.depth) == (parent.end, parent.depth + 1), (
            f"{name}: not right below its parent"
        )
        assert node.num_tokens > 0, f"{name}: empty, but not the root"

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
            num_completions: Completions of every prompt, or of each.
            decode: Token ids to text; without it, token ids are shown.
        """
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
    """Children of each node in the order of their first prompts, and all nodes in depth-first preorder."""
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
