"""KV storage: shared segments, private pages, byte accounting."""

from treeshare.kv.memory import KVGeometry, LayerKV
from treeshare.kv.page_tables import PageTable, PageTables
from treeshare.kv.pages import Page, PagePool, page_index
from treeshare.kv.segments import Order, Segment, SegmentBlock, padded_length
from treeshare.kv.store import KVStore

__all__ = [
    "KVGeometry",
    "KVStore",
    "LayerKV",
    "Order",
    "Page",
    "PagePool",
    "PageTable",
    "PageTables",
    "Segment",
    "SegmentBlock",
    "padded_length",
    "page_index",
]
