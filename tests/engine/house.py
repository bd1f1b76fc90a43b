"""Users of a ``Residency``: what a scheduler would have it do, with KV that tells which prompt it is of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import torch

from tests.engine.forests import requests_for
from treeshare.config import FoldCost
from treeshare.engine.residency import Residency
from treeshare.kv import KVGeometry, KVStore
from treeshare.sampling import SamplingParams
from treeshare.tree import PromptTree

if TYPE_CHECKING:
    from treeshare.engine.forest import LiveNode

GEOMETRY = KVGeometry.uniform(num_layers=1, num_kv_heads=1, head_dim=16, dtype=torch.float32)
CHUNK = 16
MAX_TOKENS = 16

BASE = list(range(100, 148))
PROMPTS = [
    BASE,
    [*BASE[:33], *[5] * 20],
    [*BASE[:33], *[5] * 7],
    BASE,
    [9] * 100,
    [*BASE, *[6] * 70],
    [*BASE[:40], 7],
    [3],
]
SHARES_ALL = FoldCost(launch_cost=0, merge_cost=0)
"""A node more never costs anything: whatever two prompts have in common is one node."""


def code_of(tokens):
    """A number that stands for the KV of the last of ``tokens``, which depends on all of them."""
    return float(crc32(np.asarray(tokens, np.int64).tobytes()) % 2**24)


def prompt_of(node):
    """The tokens from the top of the forest down to the end of a node."""
    return [token for above in node.path() for token in above.token_ids.tolist()]


@dataclass(eq=False)
class Tenant:
    """The completions of a request, which do everything together."""

    node: LiveNode
    prompt: list[int]
    count: int
    has_row: bool = False
    has_started: bool = False

    def as_sequence(self):
        """What ``check_invariants`` looks at."""
        return SimpleNamespace(
            completions=range(self.count),
            token_ids=[1] * self.has_started,
            live=SimpleNamespace(node=self.node),
        )


class House:
    """Tenants come, get rows, have their prompts computed, start and go; everything is checked each time."""

    def __init__(self, *, budget_tokens=10_000, keep_nodes=False, fold_cost=SHARES_ALL):
        budget = budget_tokens * GEOMETRY.bytes_per_token
        self.store = KVStore(GEOMETRY, budget_bytes=budget, page_size=16, poison=True)
        self.residency = Residency(self.store, prefill_chunk=CHUNK, keep_nodes=keep_nodes)
        self.tenants, self.fold_cost, self.num_computed = [], fold_cost, 0

    @property
    def nodes(self):
        return list(self.residency.forest.nodes())

    # -- what tenants do --

    def arrive(self, prompts, num_completions=2):
        requests = requests_for(prompts, SamplingParams(n=num_completions))
        self.residency.check_budget([(request, MAX_TOKENS) for request in requests])
        lengths = [MAX_TOKENS] * len(prompts)
        nodes = self.residency.place(PromptTree.from_prompts(prompts), requests, lengths, self.fold_cost)
        self.residency.expect([(node, num_completions) for node in nodes])
        arrived = [Tenant(*pair, num_completions) for pair in zip(nodes, prompts, strict=True)]
        self.tenants += arrived
        self.check()
        return arrived

    def admit(self, tenant):
        """Give a tenant a row; whether there was room for it."""
        path = tenant.node.path()
        missing = [node for node in path if node.segment is None]
        needed = sum(self.store.segments.bytes_of(node.num_tokens) for node in missing)
        if needed > self.store.free_bytes:
            self.reclaim(needed - self.store.free_bytes, keep=path)
        if needed > self.store.free_bytes:
            assert any(other.has_row for other in self.tenants), "a prompt does not fit alone"
            return False
        self.residency.admit(tenant.node, tenant.count)
        tenant.has_row = True
        self.residency.make_segments(missing)
        if not tenant.has_started:
            self.residency.want_logits(tenant.node)
        self.check()
        return True

    def compute(self, max_rows=64):
        """A step's prompt tokens; returns its chunks."""
        chunks = self.residency.next_chunks(max_rows)
        assert sum(chunk.end - chunk.start for _, chunk in chunks) <= max_rows
        assert [node.order for node, _ in chunks] == sorted(node.order for node, _ in chunks)
        for node, chunk in chunks:
            for above in node.path()[:-1]:
                self._check_stored(above, above.num_tokens)
            self._check_stored(node, chunk.start)
            assert chunk.start % CHUNK == 0
            assert chunk.end % CHUNK == 0 or chunk.end == node.num_tokens
            codes = self._codes(node, chunk.start, chunk.end)
            self.store.segments.write(0, node.segment, chunk.start, codes, codes)
            self.num_computed += len(codes)
            if chunk.end == node.num_tokens and node.num_unstarted:
                self.residency.keep_logits(node, torch.tensor([code_of(prompt_of(node))]))
        self.check()
        return chunks

    def compute_all(self):
        while self.residency.is_prefilling:
            assert self.compute(), "nothing is computed"

    def start(self, tenant):
        """A tenant whose prompt is computed draws its first token."""
        if tenant.has_row and not tenant.has_started and tenant.node.logits is not None:
            assert self.residency.is_computed(tenant.node)
            assert tenant.node.logits.item() == code_of(tenant.prompt)
            self.residency.note_started(tenant.node, tenant.count)
            tenant.has_started = True
            self.check()

    def withdraw(self, tenant):
        if tenant.has_row:
            self.residency.withdraw(tenant.node, tenant.count)
            tenant.has_row = False
            self.check()

    def leave(self, tenant):
        if not tenant.has_started:
            self.residency.note_started(tenant.node, tenant.count)
        self.residency.forget(tenant.node, tenant.count, had_row=tenant.has_row)
        self.tenants.remove(tenant)
        self.check()

    def reclaim(self, num_bytes, keep=()):
        before = self.store.bytes_in_use
        needed = {node for tenant in self.tenants if tenant.has_row for node in tenant.node.path()}
        needed |= set(keep)
        kept = [node for node in self.nodes if node.segment is not None and node in needed]
        freed = self.residency.reclaim(num_bytes, keep=keep)
        assert freed == before - self.store.bytes_in_use
        assert all(node.segment is not None for node in kept), "a node that is needed was given up"
        held = [node for node in self.nodes if node.segment is not None]
        parents = {node.parent for node in held}
        has_given_all = all(node in needed or node in parents for node in held)
        assert freed >= num_bytes or has_given_all, "fewer bytes than could be had"
        self.check()
        return freed

    def change_weights(self):
        for tenant in self.tenants:
            self.withdraw(tenant)
        self.residency.drop_kv()
        assert self.store.segments.num_live == 0
        assert not self.residency.is_prefilling
        self.check()

    def drop_logits(self):
        self.residency.drop_logits()
        assert all(node.logits is None for node in self.nodes)
        for tenant in self.tenants:
            if tenant.has_row and not tenant.has_started:
                self.residency.want_logits(tenant.node)
        self.check()

    # -- what must hold --

    def check(self):
        """The books by brute force over the tenants, and every stored token against its prompt."""
        self.store.check_invariants()
        unfinished, admitted, unstarted = Counter(), Counter(), Counter()
        for tenant in self.tenants:
            assert prompt_of(tenant.node) == tenant.prompt
            unstarted[tenant.node] += tenant.count * (not tenant.has_started)
            for node in tenant.node.path():
                unfinished[node] += tenant.count
                admitted[node] += tenant.count * tenant.has_row
        live = self.nodes
        assert set(unfinished) <= set(live), "a node that is needed is gone"
        for node in live:
            assert node.num_unfinished == unfinished[node]
            assert node.num_admitted == admitted[node]
            assert node.num_unstarted == unstarted[node]
            assert node.num_held == sum(child.segment is not None for child in node.children)
            if admitted[node]:
                assert node.segment is not None, "a row's prompt has lost its KV"
            if node.segment is not None:
                self._check_segment(node)
        waiting, with_row = ([t.as_sequence() for t in self.tenants if t.has_row == x] for x in (False, True))
        self.residency.check_invariants(waiting, with_row)

    def _check_segment(self, node):
        segment = node.segment
        assert (segment.start, segment.num_tokens, segment.order) == (node.start, node.num_tokens, node.order)
        assert segment.parent is node.parent.segment
        self._check_stored(node, segment.num_written)

    def _check_stored(self, node, count):
        """The first ``count`` tokens of a node have the KV of its prompt."""
        expected = self._codes(node, 0, count)
        assert torch.equal(node.segment.keys(0)[:count], expected), "keys are missing, or another prompt's"
        assert torch.equal(node.segment.values(0)[:count], expected), "values are missing, or another's"

    @staticmethod
    def _codes(node, first, last):
        """KV of tokens ``[first, last)`` of a node: ``[last - first, 1, 16]``."""
        prompt, ends = prompt_of(node), range(node.start + first + 1, node.start + last + 1)
        return torch.tensor([code_of(prompt[:end]) for end in ends]).view(-1, 1, 1).expand(-1, 1, 16)
