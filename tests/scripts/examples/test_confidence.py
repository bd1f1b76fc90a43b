"""``examples/confidence.py``: completions end where their confidence falls, and nowhere else."""

from __future__ import annotations

import pytest

from tests.cli.text_model import saved_text_model
from tests.scripts.loading import EXAMPLES, load_script
from treeshare import LLM, SamplingParams

WINDOW = 3


@pytest.fixture(scope="module")
def script():
    return load_script(EXAMPLES, "confidence")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_text_model(tmp_path_factory.mktemp("confidence"))


@pytest.mark.parametrize("max_num_seqs", [64, 3])
def test_completions_end_where_their_window_falls(script, folder, max_num_seqs):
    """At the first token whose window is below the bound, by the log-probabilities of whole completions."""
    llm = LLM(folder, logits_processors=[script.StopByConfidence], max_num_seqs=max_num_seqs)
    end, count = llm.vocab_size - 1, script.StopByConfidence.num_likeliest
    common = {"n": 12, "temperature": 0.9, "max_tokens": 14, "stop_token_ids": [end], "seed": 4}
    prompt = {"prompt_token_ids": [5, 9, 20]}

    def outputs(**values):
        return llm.generate(prompt, SamplingParams(**common, **values), use_tqdm=False)[0].outputs

    whole = outputs(logprobs=count)
    lowest = [script.windows(out.logprobs, WINDOW) for out in whole]
    bound = (min(map(min, lowest)) + max(map(min, lowest))) / 2
    found = outputs(extra_args={"window": WINDOW, "min_confidence": bound, "end": end})
    ended = 0
    for out, other, means in zip(found, whole, lowest, strict=True):
        first = next((i for i, mean in enumerate(means) if mean < bound), None)
        expected = list(other.token_ids) if first is None else [*other.token_ids[: first + WINDOW - 1], end]
        assert list(out.token_ids) == expected
        assert (out.stop_reason == end) == (first is not None)
        ended += first is not None
    assert 0 < ended < len(whole)


def test_the_script_votes(script, folder, monkeypatch, capsys):
    arguments = ["--model", str(folder), "--n", "6", "--warm-up", "4", "--max-tokens", "12", "--keep", "0.5"]
    monkeypatch.setattr("sys.argv", ["confidence.py", *arguments])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert " of 6 ended early, " in lines[0]
    assert sum(int(line.split()[0]) for line in lines[1:]) <= 10


def test_a_window_without_tokens_is_refused(script, folder):
    llm = LLM(folder, logits_processors=[script.StopByConfidence])
    params = SamplingParams(extra_args={"window": 0})
    with pytest.raises(ValueError, match="logits_processors: StopByConfidence: window: expected at least 1"):
        llm.generate({"prompt_token_ids": [5]}, params, use_tqdm=False)
