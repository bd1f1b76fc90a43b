"""Forked branches are what the model gives for the same tokens; beams are transformers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from tests.engine.forests import FORESTS
from treeshare import LLM
from treeshare.config import PAGE_SIZE
from treeshare.engine.beams import beam_search
from treeshare.errors import BudgetError, ConfigError

PROMPT = FORESTS["a prefix of another"][0]


@pytest.fixture(scope="module")
def llm(model_dir):
    return LLM(model_dir("llama"), dtype="float32")


@pytest.fixture(scope="module")
def own(model_dir):
    return transformers.AutoModelForCausalLM.from_pretrained(model_dir("llama"), dtype="float32")


@torch.inference_mode()
def test_forks(llm, own):
    with llm.search(PROMPT, max_tokens=80) as search:
        branches = search.extend([(search.root, 5), (search.root, 6), (search.root, 5)])
        for step in range(70):
            branches = search.extend([(branch, 7 + (step * i) % 90) for i, branch in enumerate(branches)])
        again = search.extend([(branches[1], 9), (branches[1], 10)])
        for branch in (*branches, *again):
            logits = own(torch.tensor([[*PROMPT, *branch.token_ids]])).logits[0].double()
            expected = logits.log_softmax(-1)
            assert np.abs(branch.logprobs - expected[-1].numpy()).max() < 1e-4
            places = range(len(PROMPT) - 1, len(PROMPT) + len(branch.token_ids) - 1)
            total = sum(expected[i, t].item() for i, t in zip(places, branch.token_ids, strict=True))
            assert branch.cumulative_logprob == pytest.approx(total, abs=1e-3)
        search.drop(branches)
        with pytest.raises(ConfigError, match="one that can be extended"):
            search.extend([(branches[0], 1)])
        llm.engine.store.check_invariants()
    assert llm.engine.store.bytes_in_use == 0


def test_a_fork_copies_nothing_and_goes_its_own_way(llm):
    store_bytes = []
    with llm.search(PROMPT, max_tokens=140) as search:
        (branch,) = search.extend([(search.root, 5)])
        for step in range(99):  # a full page and one that is not
            (longer,) = search.extend([(branch, 7 + step)])
            search.drop([branch])
            branch = longer
        store_bytes.append(llm.engine.store.bytes_in_use)
        forks = search.fork(branch, 3)
        store_bytes.append(llm.engine.store.bytes_in_use)
        search.drop([branch])
        with pytest.raises(ConfigError, match="dropped"):
            search.fork(branch)
        with pytest.raises(ConfigError, match="n: got 0"):
            search.fork(forks[0], 0)
        extended = search.extend([(fork, 20 + i) for i, fork in enumerate(forks)])
        store_bytes.append(llm.engine.store.bytes_in_use)
        apart = [search.extend([(forks[0], 20 + i)])[0].logprobs for i in range(3)]
        assert all(np.array_equal(mine.logprobs, other) for mine, other in zip(extended, apart, strict=True))
        llm.engine.store.check_invariants()
        search.drop([*forks, *extended])
    added = np.diff(store_bytes) / llm.engine.store.tables.page_bytes
    assert added.tolist() == [0, 3]  # each extension copies the page that is not full


@pytest.mark.parametrize("num_beams", [1, 3, 8])
@pytest.mark.parametrize("eos", [True, False])
@torch.inference_mode()
def test_beams_are_transformers_own(llm, own, num_beams, eos):
    for prompt in FORESTS["depth 1"][:2]:
        ids = torch.tensor([prompt])
        out = own.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            do_sample=False,
            eos_token_id=1 if eos else None,
            pad_token_id=0,
        )
        expected = [row[len(prompt) :].tolist() for row in out]
        if eos:  # shorter ones are filled up
            expected = [row[: row.index(1) + 1] if 1 in row else row for row in expected]
        with llm.search(prompt, max_tokens=24) as search:
            ends = frozenset([1]) if eos else frozenset[int]()
            beams = beam_search(search, num_beams=num_beams, eos_token_ids=ends)
        assert [list(beam.token_ids) for beam in beams] == expected


def test_mistakes(llm, model_dir):
    with pytest.raises(ConfigError, match="empty prompt"):
        llm.search([])
    with llm.search(PROMPT, max_tokens=2) as search:
        with pytest.raises(ConfigError, match="token: got 160"):
            search.extend([(search.root, 160)])
        longest = search.extend([(b, 3) for b in search.extend([(search.root, 3)])])
        with pytest.raises(ConfigError, match="one that can be extended"):
            search.extend([(longest[0], 3)])
    per_token = llm.loaded.geometry.bytes_per_token
    tight = LLM(model_dir("llama"), dtype="float32", kv_budget_bytes=(320 + PAGE_SIZE) * per_token)
    with tight.search(PROMPT) as search:
        (first,) = search.extend([(search.root, 3)])
        with pytest.raises(BudgetError):
            search.extend([(search.root, 4)])
        search.drop([first])
        assert search.extend([(search.root, 4)])[0].token_ids == (4,)
    with pytest.raises(BudgetError):
        LLM(model_dir("llama"), dtype="float32", kv_budget_bytes=100).search(PROMPT)
