"""Prompts for the tests of this folder, and oracles that find shared prefixes by brute force."""

from itertools import chain

from hypothesis import strategies as st


@st.composite
def _lists_of_prompts(draw, min_size):
    # Rows made of a few parts: long shared prefixes, duplicates and prefixes of others are frequent.
    parts = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=4))
    row = st.lists(st.sampled_from(parts), max_size=4).map(lambda chosen: list(chain(*chosen)))
    return draw(st.lists(row, min_size=min_size, max_size=12))


prompt_lists = _lists_of_prompts(0)
some_prompts = _lists_of_prompts(1)


def prefixes(prompts):
    """Every distinct non-empty prefix: the positions at which a token must be stored."""
    return {tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1)}


def radix_nodes(prompts):
    """The full prefix at the end of every node that a canonical radix tree has, by its definition."""
    rows = [tuple(prompt) for prompt in prompts]
    candidates = [p for p in {(), *prefixes(rows)} if all(row[: len(p)] == p for row in rows)]
    common = max(candidates, key=len)
    nodes = {common, *rows}
    for prefix in prefixes(rows):
        following = {
            row[len(prefix)] for row in rows if row[: len(prefix)] == prefix and len(row) > len(prefix)
        }
        if len(following) > 1:
            nodes.add(prefix)
    return nodes


def full_prefix(tree, node_id):
    """Tokens from the root to the end of a node."""
    return tuple(token for i in tree.path(node_id) for token in tree.nodes[i].token_ids.tolist())


def as_lists(rows):
    return [row.tolist() for row in rows]
