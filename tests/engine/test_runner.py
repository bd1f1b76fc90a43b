"""The runner's logits are those of a plain transformers forward pass over each prompt alone."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from tests.engine.forests import random_prompts
from tests.kernel_levels import using_kernels
from tests.models.tiny import ARCHITECTURES, VOCAB_SIZE
from tests.turns import by_turns
from treeshare.attention import AttentionSpec, DecodeRow, PrefillChunk, ReferenceAttention, build_layout
from treeshare.config import EngineConfig
from treeshare.engine.runner import ModelRunner
from treeshare.errors import ShapeError, UnsupportedModelError
from treeshare.models import load_model
from treeshare.tree import PromptTree

CONFIG = EngineConfig(max_num_seqs=24, page_size=16, kv_budget_bytes=1 << 26)
PROMPTS = random_prompts((30, [(40, [(15, []), (1, [])]), (70, []), (3, [])]))
CONTINUATIONS = [random_prompts((18, []), seed=seed)[0] for seed in range(len(PROMPTS))]
CHUNK = 32


class Walk:
    """The prompts, then a token of every continuation at a time, through a runner: logits by their tokens.

    Attributes:
        logits: ``[vocab_size]`` after each prefix of each prompt, by the prefix.
    """

    def __init__(self, runner, prompts=PROMPTS, continuations=CONTINUATIONS):
        self.runner, self.logits = runner, {}
        self._prefill(PromptTree.from_prompts(prompts), prompts)
        pages = [self.runner.store.tables.new() for _ in prompts]
        for step in range(len(continuations[0])):
            self._decode(step, prompts, continuations, pages)

    def _prefill(self, tree, prompts):
        store, self.segments, texts = self.runner.store, [], []
        for node in tree.nodes:
            parent = self.segments[node.parent] if node.parent >= 0 else None
            start = parent.end if parent else 0
            self.segments.append(
                store.segments.new(
                    start=start, num_tokens=len(node.token_ids), order=node.node_id, parent=parent
                )
            )
            texts.append([*(texts[node.parent] if parent else []), *node.token_ids.tolist()])
        self.leaves = [self.segments[node] for node in tree.prompt_nodes]
        chunks = [
            PrefillChunk(segment, first, min(first + CHUNK, segment.num_tokens))
            for segment in self.segments
            for first in range(0, segment.num_tokens, CHUNK)
        ]
        for together in (chunks[i : i + 3] for i in range(0, len(chunks), 3)):
            ends = [
                (texts[chunk.segment.order], chunk.segment.start + token)
                for chunk in together
                for token in range(chunk.start, chunk.end)
            ]
            self._run(
                together, [], [text[end] for text, end in ends], [text[: end + 1] for text, end in ends]
            )

    def _decode(self, step, prompts, continuations, pages):
        order = sorted(range(len(prompts)), key=lambda i: self.leaves[i].order)
        for i in order:
            if step % self.runner.store.page_size == 0:
                self.runner.store.tables.grow(pages[i])
        rows = [DecodeRow(self.leaves[i], pages[i], step) for i in order]
        tokens = [continuations[i][step] for i in order]
        self._run([], rows, tokens, [[*prompts[i], *continuations[i][: step + 1]] for i in order])

    def _run(self, chunks, rows, tokens, prefixes):
        layout = build_layout(self.runner.store, chunks, rows)
        wanted = list(range(layout.num_rows))
        for part in (wanted[i : i + 16] for i in range(0, len(wanted), 16)):
            logits = self.runner.to_host(self.runner.forward(layout, np.array(tokens), part))
            self.logits |= {tuple(prefixes[i]): row.clone() for i, row in zip(part, logits, strict=True)}


def runner_of(folder, **config):
    return ModelRunner(load_model(folder, "float32"), replace(CONFIG, **config), poison=True)


@torch.inference_mode()
def assert_is_plain(walk, folder, attention="eager"):
    """At most twice the model's own float32 error of float64, plus rounding."""
    dtypes = ("float32", "float64")
    own, exact = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
        for dtype in dtypes
    )
    got, wanted, plain = [], [], []
    for prompt, continuation in zip(PROMPTS, CONTINUATIONS, strict=True):
        text = [*prompt, *continuation]
        got += [walk.logits[tuple(text[: end + 1])].double() for end in range(len(text))]
        for rows, model in ((wanted, exact), (plain, own)):
            rows += model(torch.tensor([text])).logits[0].double()
    got, wanted, plain = map(torch.stack, (got, wanted, plain))
    error, own_error = ((rows - wanted).abs().max().item() for rows in (got, plain))
    budget = 2 * own_error + torch.finfo(torch.float32).eps * wanted.abs().max().item()
    assert error <= budget, f"error {error:.3g}, budget {budget:.3g}"


@pytest.mark.parametrize(("architecture", "kernels"), by_turns(ARCHITECTURES, ["auto", "none"]))
def test_logits_are_transformers_own(model_dir, architecture, kernels):
    with using_kernels(kernels):
        assert_is_plain(Walk(runner_of(model_dir(architecture))), model_dir(architecture))


@pytest.fixture(scope="module")
def runner(model_dir):
    return runner_of(model_dir("llama"))


@pytest.fixture(scope="module")
def cpu_runner(model_dir):
    return runner_of(model_dir("llama"), backend="cpu")


@pytest.fixture
def step(runner):
    """A layout of 20 prompt tokens on fresh KV, and its tokens."""
    runner.reset()
    segment = runner.store.segments.new(start=0, num_tokens=20, order=0, parent=None)
    return build_layout(runner.store, [PrefillChunk(segment, 0, 20)], []), np.arange(2, 22)


def change_field(field, change):
    """A fault in a layout's field, whoever uses it."""

    def patch(monkeypatch):
        forward = ModelRunner.forward

        def faulty(self, layout, tokens, logits_rows):
            value = getattr(layout, field)
            return forward(self, replace(layout, **{field: change(value)}), tokens, logits_rows)

        monkeypatch.setattr(ModelRunner, "forward", faulty)

    return patch


def another_row(monkeypatch):
    forward = ModelRunner.forward
    monkeypatch.setattr(
        ModelRunner,
        "forward",
        lambda self, layout, tokens, rows: forward(self, layout, tokens, [max(row - 1, 0) for row in rows]),
    )


FAULTS = {
    "positions": change_field("positions", lambda positions: positions + (positions > 50)),
    "decode_rows": change_field("decode_rows", lambda rows: rows.clamp(max=2)),
    "write_offsets": change_field("write_offsets", lambda offsets: (offsets - 1).clamp(min=0)),
    "write_pages": change_field("write_pages", lambda pages: tuple(part.roll(1) for part in pages)),
    "slices, the first": change_field("slices", lambda slices: slices[1:]),
    "slices, the last": change_field("slices", lambda slices: slices[:-1]),
    "logits_rows": another_row,
}


ONLY_CPU = {"write_offsets", "write_pages", "slices, the first"}
"""The kernel knows from the pages where tokens are written; a short node's keys it takes with those below."""


@pytest.mark.parametrize(
    ("backend", "field"),
    [("cpu", field) for field in FAULTS] + [("auto", field) for field in FAULTS if field not in ONLY_CPU],
)
def test_a_fault_is_found(runner, cpu_runner, model_dir, backend, field, monkeypatch):
    FAULTS[field](monkeypatch)
    if backend == "cpu":
        runner = cpu_runner
    runner.reset()
    with pytest.raises(AssertionError, match=r"^error .*, budget"):
        assert_is_plain(Walk(runner), model_dir("llama"))


def _query_only(module, query, key, value, attention_mask, **kwargs):
    return query.transpose(1, 2), None


def test_without_attention(model_dir):
    """A transformers model whose attention returns its query; no KV is written."""
    AttentionInterface.register("query_only", _query_only)
    runner = runner_of(model_dir("llama"), attention="off")
    walk = Walk(runner)
    assert_is_plain(walk, model_dir("llama"), "query_only")
    assert all(segment.keys(0).isnan().all() for segment in walk.segments)


def test_logits_are_of_the_rows_that_are_asked_for(runner, step):
    layout, tokens = step
    every = runner.forward(layout, tokens, list(range(16))).clone()
    for rows in ([], [7], [15, 0, 3], [2, 2], list(range(15, -1, -1))):
        logits = runner.forward(layout, tokens, rows)
        assert logits.shape == (len(rows), VOCAB_SIZE)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, every[rows])


def test_reset_gives_all_kv_back(runner, step):
    runner.forward(*step, [0])
    store = runner.store
    assert store.bytes_in_use > 0
    runner.reset()
    assert runner.store is not store
    runner.store.check_empty()
    assert runner.store.budget_bytes == runner.kv_budget_bytes == CONFIG.kv_budget_bytes


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_freed_kv_leaves_memory_after_the_step(model_dir, backend):
    """No backend holds on to the last step's layout, and with it to the KV that it reads."""
    runner = runner_of(model_dir("llama"), backend=backend)
    segment = runner.store.segments.new(start=0, num_tokens=20, order=0, parent=None)
    runner.forward(build_layout(runner.store, [PrefillChunk(segment, 0, 20)], []), np.arange(2, 22), [0])
    keys = weakref.ref(segment.block.keys_t[0])
    assert keys() is not None
    runner.store.segments.release(segment)
    del segment
    gc.collect()
    assert keys() is None


def test_the_budget_is_the_machines_by_default(model_dir, monkeypatch):
    monkeypatch.setattr("treeshare.engine.runner.default_kv_budget_bytes", lambda device: 12345)
    runner = runner_of(model_dir("llama"), kv_budget_bytes=None)
    assert runner.kv_budget_bytes == runner.store.budget_bytes == 12345


def test_limits_do_not_depend_on_how_many_sequences_may_run(model_dir):
    """Else a completion's bits would depend on the row limit."""
    few, many = (runner_of(model_dir("gpt2"), max_num_seqs=num) for num in (4, 300))
    assert few.adapter.widths == many.adapter.widths[: len(few.adapter.widths)]
    assert few.adapter.head_widths == many.adapter.head_widths[: len(few.adapter.head_widths)]


def test_more_rows_than_its_limit_are_refused(runner):
    runner.reset()
    too_many = runner.max_rows + 1
    segment = runner.store.segments.new(start=0, num_tokens=too_many, order=0, parent=None)
    layout = build_layout(runner.store, [PrefillChunk(segment, 0, too_many)], [])
    message = f"^packed rows: got {too_many}, expected at most {too_many - 1}$"
    with pytest.raises(ShapeError, match=message):
        runner.forward(layout, np.zeros(too_many, np.int64), [0])


def test_what_its_backend_lacks_is_refused(model_dir, monkeypatch):
    loaded = load_model(model_dir("llama"), "float32")
    first, *_ = loaded.calls
    other = replace(first, layer=1, spec=AttentionSpec(scale=1.0, window=8, soft_cap=30.0))
    monkeypatch.setattr(ReferenceAttention, "features", frozenset({"attention sinks"}))
    with pytest.raises(UnsupportedModelError) as caught:
        ModelRunner(replace(loaded, calls=(first, other)), replace(CONFIG, backend="reference"))
    assert str(caught.value) == (
        "llama: not implemented by attention reference: attention soft-capping; sliding-window attention"
    )


# -- on the host --


def exact_logprobs(logits):
    return logits.double().log_softmax(-1).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs(runner, dtype):
    """As float32's own log-softmax: each difference from the maximum and each sum are rounded."""
    logits = torch.randn(9, 5000, generator=torch.Generator().manual_seed(0)).mul(8).to(dtype)
    logits[3, :4000] = -torch.inf
    got, exact = runner.logprobs(logits), exact_logprobs(logits)
    assert got.dtype == np.float32
    assert (got[3, :4000] == -np.inf).all()
    finite = np.isfinite(exact)
    bound = 2.0**-24 * (np.abs(exact[finite]).max() * 2 + 5000)
    assert np.abs(got[finite] - exact[finite]).max() <= bound
    rows, tokens = np.array([0, 8, 3, 0]), np.array([7, 4999, 4500, 7])
    chosen, is_best = runner.token_logprobs(logits, rows, tokens)
    assert chosen.tolist() == got[rows, tokens].tolist()
    assert is_best.tolist() == (exact.argmax(-1)[rows] == tokens).tolist()


def test_the_best_of_a_tie_is_the_lowest(runner):
    logits = torch.tensor([[0.0, 5.0, 5.0], [1.0, 1.0, 1.0]])
    rows, tokens = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 2])
    assert runner.token_logprobs(logits, rows, tokens)[1].tolist() == [False, True, False, True, False]
    nothing = runner.token_logprobs(logits, rows[:0], tokens[:0])
    assert [len(values) for values in nothing] == [0, 0]
