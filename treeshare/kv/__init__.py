"""KV storage: shared segments, private pages, byte accounting."""

from treeshare.kv.pages import Page, PagePool
from treeshare.kv.segments import Segment, SegmentBlock
from treeshare.kv.store import KVGeometry, KVStore, padded_length

__all__ = ["KVGeometry", "KVStore", "Page", "PagePool", "Segment", "SegmentBlock", "padded_length"]
