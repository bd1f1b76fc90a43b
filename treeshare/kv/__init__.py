"""KV storage: shared segments, private pages, byte accounting."""

from treeshare.kv.pages import Page, PagePool
from treeshare.kv.store import KVGeometry, KVStore, Segment, SegmentBlock, padded_length

__all__ = ["KVGeometry", "KVStore", "Page", "PagePool", "Segment", "SegmentBlock", "padded_length"]
