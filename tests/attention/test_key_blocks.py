"""Blocks of keys: every row meets its own prompt's keys in blocks at fixed positions, in any tree."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given

from tests.attention.steps import SHAPES, Step, shapes
from tests.examples import examples
from treeshare.attention import key_blocks
from treeshare.attention.key_blocks import block_slices

BLOCKS = (1, 7, 16, 256)


def blocks_met(layout, block):
    """Per packed row the blocks of keys that it meets, in order."""
    met = [[] for _ in range(layout.num_rows)]
    for part in block_slices(layout):
        keys = [(piece.segment.order, token) for piece in part.pieces for token in range(*piece[1:])]
        assert len(keys) == part.num_keys > 0
        for row in range(part.first_row, part.last_row):
            seen = keys
            if part.first_own_token is not None:
                before = len(keys) - (part.pieces[-1].last_token - part.pieces[-1].first_token)
                seen = keys[: before + part.first_own_token + row - part.first_row + 1]
            met[row] += [seen[start : start + block] for start in range(0, len(seen), block)]
    return met


def blocks_expected(expected, block):
    """The same by brute force: the prompt's keys of each row's path, cut at multiples of ``block``."""
    prompts = [[place[1:] for place in keys if place[0] == "segment"] for keys in expected]
    return [[keys[start : start + block] for start in range(0, len(keys), block)] for keys in prompts]


def check(step):
    expected = step.expected()
    for block in BLOCKS:
        with patch.object(key_blocks, "KEY_BLOCK", block):
            assert blocks_met(step.layout, block) == blocks_expected(expected, block)


@pytest.mark.parametrize("sharing", ["tree", "one-level", "none"])
@pytest.mark.parametrize("name", SHAPES)
def test_rows_meet_their_prompts_blocks(name, sharing):
    check(Step(SHAPES[name], sharing))


@examples(20)
@given(shapes())
def test_rows_meet_their_prompts_blocks_in_any_tree(shape):
    for sharing in ("tree", "one-level", "none"):
        check(Step(shape, sharing))


def start_at_the_segment(pieces):
    return lambda segment, start, end: pieces(segment, max(start, segment.start), end)


def forget_the_root(pieces):
    return lambda segment, start, end: pieces(segment, start, end)[1:] or pieces(segment, start, end)


def turn_round(pieces):
    return lambda segment, start, end: pieces(segment, start, end)[::-1]


@pytest.mark.parametrize("fault", [start_at_the_segment, forget_the_root, turn_round])
def test_a_fault_is_seen(fault, monkeypatch):
    monkeypatch.setattr(key_blocks, "pieces", fault(key_blocks.pieces))
    with pytest.raises(AssertionError):
        check(Step(SHAPES["depth 6"], "tree"))
