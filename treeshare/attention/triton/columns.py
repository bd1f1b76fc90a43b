"""The columns of the tables that the Triton kernels read, written once for the host and the kernels."""

from enum import IntEnum


class TargetColumn(IntEnum):
    """Where a packed row's token is stored; without padded tokens it is not stored."""

    BLOCK = 0
    INDEX = 1
    PADDED_TOKENS = 2
    TOKEN = 3


class SliceColumn(IntEnum):
    """A work item of ``attend_slices``: a tile of the rows of a slice, and keys of its node.

    ``POSITION`` is that of the slice's first row in the segment, -1 where every row sees every key; ``START``
    that of the segment in its sequences.
    """

    FIRST_ROW = 0
    LAST_ROW = 1
    FIRST_TILE_ROW = 2
    BLOCK = 3
    INDEX = 4
    PADDED_TOKENS = 5
    FIRST_KEY = 6
    LAST_KEY = 7
    FIRST_SLOT = 8
    POSITION = 9
    START = 10


class PageColumn(IntEnum):
    """A work item of ``attend_pages``: a row, and some of its private pages.

    ``NUM_TOKENS`` counts from the first page; ``FIRST_TOKEN`` is the first of them that the row sees.
    """

    ROW = 0
    FIRST_PAGE = 1
    NUM_TOKENS = 2
    SLOT = 3
    FIRST_TOKEN = 4


class SourceColumn(IntEnum):
    """What ``merge_states`` merges of a row: the chunks of a node."""

    FIRST_SLOT = 0
    SLOT_STEP = 1
    NUM_CHUNKS = 2
