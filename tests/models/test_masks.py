"""What a mask function says of windows and chunks is read from it; what it says beside that is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import masking_utils

from treeshare.models.masks import OtherMask, mask_spec

LENGTHS = [1, 2, 3, 16, 1000, 4095]


@pytest.mark.parametrize("longest", [4096, 1 << 22])
@pytest.mark.parametrize("length", LENGTHS)
def test_windows(length, longest):
    spec = mask_spec(masking_utils.sliding_window_causal_mask_function(length), longest)
    assert (spec.window, spec.chunk) == (length, None)


@pytest.mark.parametrize("longest", [4096, 1 << 22])
@pytest.mark.parametrize("length", LENGTHS[1:])
def test_chunks(length, longest):
    no_padding = torch.zeros(1, dtype=torch.int64)
    spec = mask_spec(masking_utils.chunked_causal_mask_function(length, no_padding), longest)
    assert (spec.window, spec.chunk) == (None, length)


@pytest.mark.parametrize("longest", [1, 2, 7, 1 << 22])
def test_plain(longest):
    spec = mask_spec(masking_utils.causal_mask_function, longest)
    assert (spec.window, spec.chunk) == (None, None)


def test_a_window_that_no_sequence_reaches():
    assert mask_spec(masking_utils.sliding_window_causal_mask_function(64), 64).window is None
    assert mask_spec(masking_utils.sliding_window_causal_mask_function(63), 64).window == 63


def _causal(rows, keys):
    return keys <= rows


OTHERS = {
    "both ways": lambda rows, keys: rows >= 0,
    "nothing": lambda rows, keys: rows < 0,
    "every other key": lambda rows, keys: _causal(rows, keys) & ((rows - keys) % 2 == 0),
    "a window that grows": lambda rows, keys: _causal(rows, keys) & (keys >= rows // 2),
    "first keys and a window": lambda rows, keys: _causal(rows, keys) & ((keys < 4) | (keys > rows - 16)),
    "a window with a hole": lambda rows, keys: _causal(rows, keys) & (keys > rows - 16) & (keys != rows - 3),
    "not itself": lambda rows, keys: (keys < rows) | (keys == 0),
    "a later key": lambda rows, keys: keys <= rows + 1,
    "a window from a position on": lambda rows, keys: (
        _causal(rows, keys) & ((rows < 900) | (keys > rows - 16))
    ),
    "one row's window is shorter": lambda rows, keys: (
        _causal(rows, keys) & (keys > rows - torch.where(rows == 32, 15, 16))
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_masks_are_not_read_as_one_of_these(name):
    with pytest.raises(OtherMask):
        mask_spec(lambda batch, head, rows, keys: OTHERS[name](rows, keys), 1024)


def test_a_mask_of_padding_depends_on_more_than_positions():
    padding = masking_utils.padding_mask_function(torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(OtherMask, match="more than positions"):
        mask_spec(masking_utils.and_masks(masking_utils.causal_mask_function, padding), 1024)
