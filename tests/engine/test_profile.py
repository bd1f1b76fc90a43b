"""Where the time of a run went: the parts add up, and each is charged for what it did."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from treeshare.attention import CpuAttention, cpu
from treeshare.engine.llm import LLM
from treeshare.engine.workload import Workload, run_workload
from treeshare.stopwatch import OFF, REST, Stopwatch

WORKLOAD = Workload(
    name="forest",
    problems=[{"prompt_ids": [*range(2, 50), 3 + i, *range(2, 60)], "samples": 4} for i in range(4)],
    new_tokens=16,
)


@pytest.mark.parametrize(("dtype", "backend"), [("float32", "cpu"), ("bfloat16", "auto")])
def test_named_parts_add_up(model_dir, dtype, backend, monkeypatch):
    """By the processor's time, which other programs do not lengthen, of one thread."""
    for module in ("treeshare.stopwatch", "treeshare.engine.workload"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(perf_counter=time.process_time))
    llm = LLM(model_dir("llama"), dtype=dtype, backend=backend, profile=True)
    figures = run_workload(llm, WORKLOAD)
    phases = figures["profile_s"]
    seconds = sum(sum(parts.values()) - parts.get(REST, 0.0) for parts in phases.values())
    assert 0.95 * figures["wall_s"] <= seconds <= 1.01 * figures["wall_s"] + 0.001
    model_parts = {"linear", "lm_head", "norms and other small operations", "layout"}
    assert model_parts | {"attention: causal", "attention: store"} <= phases["prefill"].keys()
    assert model_parts | {"attention: shared", "attention: private"} <= phases["decode"].keys()
    assert "attention: private" not in {part for part, value in phases["prefill"].items() if value > 0.001}
    assert phases["between"].keys() >= {"sampling", "bookkeeping", "scheduling", "planning"}


@pytest.mark.parametrize("sharing", ["tree", "none"])
def test_the_clock_changes_no_token(model_dir, sharing):
    def tokens(profile):
        llm = LLM(model_dir("llama"), dtype="bfloat16", sharing=sharing, profile=profile)
        outputs = llm.generate([p.prompt_ids for p in WORKLOAD.problems], use_tqdm=False)
        return [completion.token_ids for output in outputs for completion in output.outputs]

    assert tokens(True) == tokens(False)


def test_time_is_charged_where_it_is_spent(model_dir, monkeypatch):
    add_private = cpu._Call.add_private

    def slow(self, *args):
        time.sleep(0.01)
        add_private(self, *args)

    monkeypatch.setattr(cpu._Call, "add_private", slow)
    llm = LLM(model_dir("llama"), dtype="float32", profile=True)
    llm.engine.runner.backend = CpuAttention(llm.engine.stopwatch)
    workload = WORKLOAD.model_copy(update={"problems": WORKLOAD.problems[:1], "new_tokens": 4})
    phases = run_workload(llm, workload)["profile_s"]
    num_layers, num_steps = 3, 3  # the first of four tokens comes from the prompt's logits
    assert phases["decode"]["attention: private"] >= num_layers * num_steps * 0.01


def test_stopwatch():
    watch = Stopwatch()
    time.sleep(0.01)
    watch.enter("decode", before="first")
    time.sleep(0.02)
    watch.split({"second": 1, "third": 3})
    watch.split({"second": 0, "third": 0})
    first, second, third = (
        watch.seconds[key] for key in (("between", "first"), ("decode", "second"), ("decode", "third"))
    )
    assert first >= 0.01
    assert second + third >= 0.02
    assert third >= 2.9 * 0.005
    assert list(watch.as_dict()["decode"]) == ["third", "second"]
    watch.restart()
    assert not watch.seconds


def test_a_stopwatch_that_is_off_keeps_nothing():
    OFF.enter("between", before="first")
    OFF.split({"second": 1})
    assert not OFF.seconds
