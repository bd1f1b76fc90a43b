"""Int8 weights in the engine: the same bytes at every level, with any threads, rows and libraries."""

from __future__ import annotations

import re

import pytest
import torch

from tests.engine.portable_run import portable_run
from tests.engine.test_company import differing
from tests.engine.test_portable import MASKS, OLD_CPU, folder, run_masked  # noqa: F401  # folder is a fixture
from tests.kernel_levels import LEVELS, num_threads, portable_by, using_kernels
from treeshare import LLM, SamplingParams
from treeshare.engine import fingerprint as fingerprint_module
from treeshare.engine.fingerprint import fingerprint
from treeshare.errors import ConfigError, RunMismatchError
from treeshare.models import load_model
from treeshare.models.quantization import Int8Weights
from treeshare.native import kernel_levels
from treeshare.runs.directory import RunDirectory
from treeshare.runs.sampling_run import computation, make_manifest

pytestmark = [
    pytest.mark.skipif(not LEVELS, reason="no compiled library, or none for this CPU"),
    pytest.mark.usefixtures("private_cache"),
]

ALL_LEVELS = kernel_levels()[:-1]


RESULTS = ("weights", "tokens", "log-probabilities", "scores")
"""What does not depend on how many rows a step has; parts of the model return a step's rows together."""


def run_at(folder, level, threads=1, rows=32, dtype="bfloat16", num_tokens=60):  # noqa: F811
    with using_kernels(level), num_threads(threads):
        found = portable_run(folder, dtype, num_tokens, "int8", rows)
    return found if rows == 32 else {name: found[name] for name in RESULTS}


def is_within(found, expected):
    return all(expected[name] == value for name, value in found.items())


def test_levels_threads_and_rows_change_no_byte(folder):  # noqa: F811
    """Two of them; all of them with all in the slow test."""
    expected = run_at(folder, ALL_LEVELS[0], num_tokens=24)
    cases = [(ALL_LEVELS[len(ALL_LEVELS) // 2], 2, 3), (ALL_LEVELS[-1], 5, 64)]
    assert [case for case in cases if not is_within(run_at(folder, *case, num_tokens=24), expected)] == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_all_levels_threads_and_rows(folder, dtype):  # noqa: F811
    expected = run_at(folder, ALL_LEVELS[-1], dtype=dtype)
    cases = [(level, threads, rows) for level in ALL_LEVELS for threads in (1, 2, 5) for rows in (1, 8, 64)]
    assert [case for case in cases if not is_within(run_at(folder, *case, dtype), expected)] == []


def test_plain_code_gives_the_same_bytes(folder):  # noqa: F811
    """Of everything but int8 matmuls, too: what a CPU has that no other code serves."""
    with portable_by("portable"):
        found = portable_run(folder, "bfloat16", 24, "int8")
    assert found == run_at(folder, ALL_LEVELS[0], num_tokens=24)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [*MASKS, "old CPU"])
def test_masks(folder, mask):  # noqa: F811
    found = run_masked(
        folder, "bfloat16", MASKS.get(mask, OLD_CPU), num_tokens=80, level="auto", module="int8_run"
    )
    assert found == run_at(folder, ALL_LEVELS[0], num_tokens=80)


def test_a_sum_that_depends_on_the_rows_is_found(folder, monkeypatch):  # noqa: F811
    """The positive control: a product whose last bit follows the number of rows."""
    expected = run_at(folder, ALL_LEVELS[0], rows=64, num_tokens=24)
    multiply = Int8Weights.multiply

    def uneven(self, x):
        return multiply(self, x) * (1 + torch.finfo(x.dtype).eps * (len(x) % 2))

    monkeypatch.setattr(Int8Weights, "multiply", uneven)  # the head alone: layers are fused
    found = run_at(folder, ALL_LEVELS[0], rows=64, num_tokens=24)
    assert found["log-probabilities"] != expected["log-probabilities"]


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3])
def test_company_changes_no_bit(model_dir, depth):
    assert differing(load_model(model_dir("llama"), "bfloat16", quantization="int8"), depth) == {}


def test_two_models_in_one_process(model_dir):
    """One by int8 weights and one by floats, each with its own level's attention."""
    llms = [
        LLM(model_dir("llama"), dtype="bfloat16", quantization=kind, kv_budget_bytes=1 << 24)
        for kind in ("int8", None)
    ]
    records = [computation(llm.engine)["kernels"] for llm in llms]
    assert records[0] == "portable"
    assert (records[1] == "portable") is (ALL_LEVELS == ("portable",))
    assert [llm.loaded.quantization for llm in llms] == ["int8", None]


# -- runs ---------------------------------------------------------------------------------------------------


def manifest(llm):
    return make_manifest(
        llm, task="t", data="", task_ids=["a"], prompts=[[5, 6]], params=SamplingParams(max_tokens=2)
    )


def test_a_run_goes_on_by_the_same_weights_alone(model_dir, tmp_path):
    int8, floats = (
        LLM(model_dir("llama"), quantization=kind, kv_budget_bytes=1 << 24) for kind in ("int8", None)
    )
    with RunDirectory(tmp_path / "run", manifest(int8)) as directory:
        assert directory.manifest.quantization == "int8"
        assert directory.manifest.model_sha256 == int8.loaded.fingerprint()
    with RunDirectory(tmp_path / "run", manifest(int8)):
        pass
    message = "quantization: run has 'int8', command has None"
    with pytest.raises(RunMismatchError, match=message), RunDirectory(tmp_path / "run", manifest(floats)):
        pass


# -- fingerprint --------------------------------------------------------------------------------------------


@pytest.fixture
def llm(model_dir):
    return LLM(model_dir("llama"), dtype="bfloat16", quantization="int8", kv_budget_bytes=1 << 24)


def test_the_fingerprint_is_the_same_at_other_levels(model_dir):
    found = set()
    for level in (ALL_LEVELS[0], ALL_LEVELS[-1]):
        with using_kernels(level):
            llm = LLM(model_dir("llama"), dtype="bfloat16", quantization="int8", kv_budget_bytes=1 << 24)
            found.add(fingerprint(llm))
    assert len(found) == 1
    assert re.fullmatch("[0-9a-f]{16}", found.pop())


def test_a_fingerprint_is_of_weights_tokens_and_log_probabilities(llm, monkeypatch):
    found = {fingerprint(llm)}
    monkeypatch.setattr(fingerprint_module, "ARITHMETIC", -1)
    found.add(fingerprint(llm))
    monkeypatch.undo()
    llm.update_weights({"model.norm.weight": torch.full((64,), 1.5)})
    found.add(fingerprint(llm))
    assert len(found) == 3


def test_a_model_whose_bits_differ_between_cpus_has_none(model_dir):
    if ALL_LEVELS == ("portable",):
        pytest.skip("it has no other level")
    with pytest.raises(ConfigError, match=r"^fingerprint: got 'bfloat16 at level .*; use quantization int8$"):
        fingerprint(LLM(model_dir("llama"), dtype="bfloat16", kv_budget_bytes=1 << 24))
