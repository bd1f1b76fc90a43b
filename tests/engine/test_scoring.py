"""Scores are the model's own log-softmax, the same bits in any company, each token computed once."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import transformers

from tests.engine.forests import FORESTS
from tests.models.tiny import ARCHITECTURES
from treeshare.config import EngineConfig
from treeshare.engine import scoring
from treeshare.engine.engine import Engine
from treeshare.engine.scoring import score
from treeshare.errors import BudgetError, ConfigError, DataError
from treeshare.models import load_model

RNG = np.random.default_rng(5)


def tokens(count):
    return RNG.integers(2, 160, count).tolist()


PREAMBLE = tokens(300)
QUESTIONS = [PREAMBLE + tokens(n) for n in (37, 90, 5, 64, 211)]
CHOICES = [tokens(n) for n in (9, 1, 30, 17)]
PAIRS = [
    *((question, choice) for question in QUESTIONS for choice in CHOICES),  # a question's choices
    *((QUESTIONS[0], CHOICES[2] + CHOICES[3] + tokens(n)) for n in (1, 2, 20)),  # which begin alike
    *((question + choice, CHOICES[0]) for question in QUESTIONS[:2] for choice in CHOICES),  # its contexts
    (PREAMBLE, CHOICES[0][:4] + tokens(300)),  # over the border of a piece
    (PREAMBLE, CHOICES[0]),
    ([3], tokens(700)),  # as in rolling
    ([3], [5]),
    (QUESTIONS[0], CHOICES[2]),  # again
    (QUESTIONS[0], []),
    (PREAMBLE[:256], PREAMBLE[256:290]),  # the same tokens, cut elsewhere
]


@pytest.fixture(scope="module")
def engines(model_dir):
    made = {}

    def get(architecture="llama", dtype="float32", **config):
        key = (architecture, dtype, tuple(sorted(config.items())))
        if key not in made:
            made[key] = Engine(
                load_model(model_dir(architecture), dtype), EngineConfig(**config), check_invariants=True
            )
        return made[key]

    return get


def run(engine, pairs, done=lambda _: None):
    """Scores, from an engine that checks its invariants after every step."""
    scores = score(engine, pairs, done)
    assert engine.store.bytes_in_use == 0
    assert engine.stats.peak_kv_bytes <= engine.store.budget_bytes
    return scores


def bits(scores):
    return [(scored.logprobs, scored.is_greedy) for scored in scores]


@torch.inference_mode()
def plain(model, pair):
    """What the model gives for one pair alone: log-probabilities and logits, ``[continuation, vocab]``."""
    context, continuation = pair
    logits = model(torch.tensor([context + continuation[:-1]])).logits[0, len(context) - 1 :]
    return logits.log_softmax(-1), logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_transformers_own(engines, model_dir, architecture):
    """Within twice the model's own error of float64, plus rounding."""
    own = transformers.AutoModelForCausalLM.from_pretrained(model_dir(architecture), dtype="float32")
    exact = transformers.AutoModelForCausalLM.from_pretrained(model_dir(architecture), dtype="float64")
    pairs = PAIRS if architecture == "llama" else PAIRS[2:6] + PAIRS[-4:]
    got = run(engines(architecture), pairs)
    error, budget = 0.0, 0.0
    for pair, scored in zip(pairs, got, strict=True):
        assert len(scored.logprobs) == len(scored.is_greedy) == len(pair[1])
        assert scored.total == sum(scored.logprobs)
        assert scored.all_greedy == all(scored.is_greedy)
        if not pair[1]:
            continue
        chosen = torch.tensor(pair[1]).unsqueeze(1)
        expected, logits = plain(exact, pair)
        own_error = (plain(own, pair)[0].double() - expected).gather(1, chosen).abs().max().item()
        ours = torch.tensor(scored.logprobs, dtype=torch.float64).unsqueeze(1)
        error = max(error, (ours - expected.gather(1, chosen)).abs().max().item())
        budget = max(budget, 2 * own_error + torch.finfo(torch.float32).eps * expected.abs().max().item())
        assert scored.is_greedy == (logits.argmax(-1) == chosen.squeeze(1)).tolist()
    assert error <= budget, f"error {error:.3g}, budget {budget:.3g}"


@pytest.mark.parametrize(
    ("architecture", "dtype"), [("llama", "float32"), ("gpt2", "float32"), ("qwen2", "bfloat16")]
)
def test_alone_as_in_company(engines, architecture, dtype):
    engine = engines(architecture, dtype)
    together = bits(run(engine, PAIRS))
    assert bits(run(engine, PAIRS[::-1])) == together[::-1]
    for i in range(0, len(PAIRS), 1 if architecture == "llama" else 7):
        assert bits(run(engine, [PAIRS[i]])) == [together[i]]


def test_greedy_decoding_is_greedy(engines):
    """A continuation made of the likeliest tokens is greedy throughout; one changed token is not."""
    engine = engines()
    context, made = QUESTIONS[0], []
    for _ in range(6):
        options = run(engine, [(context + made, [token]) for token in range(160)])
        assert sum(option.all_greedy for option in options) == 1
        assert sum(np.exp(option.total) for option in options) == pytest.approx(1, abs=1e-4)
        made.append([option.all_greedy for option in options].index(True))
    (scored,) = run(engine, [(context, made)])
    assert scored.all_greedy
    made[3] = (made[3] + 1) % 160
    assert run(engine, [(context, made)])[0].is_greedy[3] is False


def test_a_tie_goes_to_the_lowest_id(engines, model_dir):
    loaded = load_model(model_dir("llama"), "float32")
    with torch.no_grad():
        loaded.model.lm_head.weight.zero_()
    engine = Engine(loaded, EngineConfig())
    first, second = run(engine, [([5, 6], [0, 0]), ([5, 6], [1, 0])])
    assert first.is_greedy == [True, True]
    assert second.is_greedy == [False, True]
    assert first.logprobs == pytest.approx([-np.log(160)] * 2, rel=1e-6)


def test_shared_tokens_are_computed_once(engines):
    engine = engines()
    pairs = [(question, choice) for question in QUESTIONS for choice in CHOICES]
    run(engine, pairs)
    stats = engine.stats
    rows = [context + continuation[:-1] for context, continuation in pairs]
    assert stats.unique_tokens == len({tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)})
    assert stats.logical_tokens == sum(len(c) + len(t) - 1 for c, t in pairs)
    # Contexts part at token 300, in the middle of a chunk: its first 12 tokens are computed for each.
    assert stats.prefilled_tokens <= stats.unique_tokens + 12 * len(QUESTIONS)
    assert len(stats.step_s) < 8


def test_beginnings_of_continuations_are_computed_once(engines):
    engine, begin = engines(), tokens(100)
    pairs = [(QUESTIONS[0], begin + tokens(10)) for _ in range(8)]
    together = bits(run(engine, pairs))
    assert engine.stats.prefilled_tokens <= len(QUESTIONS[0]) + 96 + 8 * (4 + 9)
    assert bits(run(engine, pairs[5:6])) == together[5:6]


@pytest.mark.parametrize("extra", [0, 800_000])
def test_any_budget_that_holds_a_path_gives_the_same_bits(engines, extra):
    """Where it holds no more, nothing is kept to be copied from."""
    pairs = PAIRS[:31]
    expected = bits(run(engines(), pairs))
    num_computed = engines().stats.prefilled_tokens
    with pytest.raises(BudgetError, match=r"pairs\[19\] has 528 tokens") as caught:
        score(engines(kv_budget_bytes=1000), pairs, lambda _: None)
    need = int(re.search(r"at least (\d+)", str(caught.value)).group(1))
    with pytest.raises(BudgetError, match=r"pairs\[19\]"):
        score(engines(kv_budget_bytes=need - 1), pairs, lambda _: None)
    engine = engines(kv_budget_bytes=need + extra)
    assert bits(run(engine, pairs)) == expected
    assert (engine.stats.prefilled_tokens > num_computed) == (extra == 0)


def test_memory_stays_bounded(engines):
    """Finished subtrees are freed: five times the questions take no more than half as much again."""
    engine = engines(kv_budget_bytes=1 << 30)
    pairs = [(PREAMBLE + tokens(60), choice) for _ in range(30) for choice in CHOICES[:2]]
    run(engine, pairs[:12])
    few = engine.stats.peak_kv_bytes
    run(engine, pairs)
    assert engine.stats.peak_kv_bytes < 1.5 * few


def test_few_rows_of_logits(engines, monkeypatch):
    pairs = PAIRS[8:26] + PAIRS[-4:]
    expected = bits(run(engines(), pairs))
    monkeypatch.setattr(scoring, "MAX_LOGITS_BYTES", 20 * 4 * 160)
    assert bits(run(engines(), pairs)) == expected
    monkeypatch.undo()
    assert bits(run(engines(max_num_seqs=1), pairs)) == expected


def test_progress(engines):
    counts = []
    run(engines(), PAIRS, counts.append)
    assert sum(counts) == len(PAIRS)
    assert len(counts) > 4
    assert run(engines(), []) == []


@pytest.mark.parametrize(
    ("pair", "error", "message"),
    [
        (([], [5]), ConfigError, "pairs[1]: context: got 'no tokens', expected at least one"),
        (([5], [160]), ConfigError, "pairs[1]: continuation: got 160, expected token ids in [0, 160)"),
        (([5], [-1]), DataError, "pairs[1]: continuation: got id -1"),
        (([5.5], [1]), DataError, "pairs[1]: context: got values of type float64"),
        (([5] * 1000, [5] * 26), ConfigError, "pairs[1]: got '1026 tokens', expected at most 1025"),
    ],
)
def test_mistakes(engines, pair, error, message):
    with pytest.raises(error, match=re.escape(message)):
        score(engines(), [([5], [6]), pair], lambda _: None)


def test_the_longest_pair(engines):
    ids = tokens(1025)
    (scored,) = run(engines(), [(ids[:1], ids[1:])])
    assert len(scored.logprobs) == 1024


def test_an_interrupt_leaves_nothing(engines):
    engine = engines()

    def stop(_):
        if engine.store.bytes_in_use:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(engine, PAIRS, stop)
    assert engine.store.bytes_in_use == 0
    assert run(engine, PAIRS[:2])


def test_a_busy_engine_is_refused(model_dir):
    from treeshare import LLM, SamplingParams

    llm = LLM(model_dir("llama"), dtype="float32")
    stream = llm.stream([FORESTS["depth 0"][0]], SamplingParams(max_tokens=5), tokens=True)
    next(stream)
    with pytest.raises(ConfigError, match="score: other requests are running"):
        llm.score([([5], [6])], use_tqdm=False)
    assert len(list(stream)) > 1
    assert len(llm.score([([5], [6])], use_tqdm=False)) == 1
