"""``LLM``: vLLM's interface."""

from __future__ import annotations

import functools
import operator

import pytest

from tests.engine.forests import FORESTS
from treeshare import LLM, SamplingParams
from treeshare.errors import ConfigError, ModelLoadError

PROMPTS = FORESTS["depth 2"]


@pytest.fixture(scope="module")
def llm(model_dir):
    return LLM(model_dir("llama"), dtype="float32")


def tokens(outputs):
    return [[completion.token_ids for completion in output.outputs] for output in outputs]


def test_outputs(llm):
    params = SamplingParams(n=3, max_tokens=9, logprobs=2)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params, use_tqdm=False)
    assert [output.request_id for output in outputs] == ["0", "1", "2", "3"]
    assert [output.prompt_token_ids for output in outputs] == PROMPTS
    assert [output.num_cached_tokens for output in outputs] == [0, 84, 64, 194]
    for output in outputs:
        assert output.prompt is None
        assert output.finished
        assert [completion.index for completion in output.outputs] == [0, 1, 2]
        for completion in output.outputs:
            chosen = [at[token] for token, at in zip(completion.token_ids, completion.logprobs, strict=True)]
            one_by_one = functools.reduce(
                operator.add, (entry.logprob for entry in chosen)
            )  # 3.12 sums closer
            assert completion.cumulative_logprob == one_by_one
            assert all(2 <= len(at) <= 3 for at in completion.logprobs)
            assert {1, 2} <= {entry.rank for at in completion.logprobs for entry in at.values()}


def test_forms_of_a_prompt(llm):
    params = SamplingParams(n=2, max_tokens=5)
    expected = tokens(llm.generate([PROMPTS[0]], params, use_tqdm=False))
    assert tokens(llm.generate(PROMPTS[0], params, use_tqdm=False)) == expected
    assert tokens(llm.generate({"prompt_token_ids": PROMPTS[0]}, [params], use_tqdm=False)) == expected
    assert llm.generate([], params, use_tqdm=False) == []


def test_a_completion_does_not_depend_on_the_other_prompts_or_their_order(llm):
    params = SamplingParams(n=4, max_tokens=12)
    together = tokens(llm.generate(PROMPTS, params, use_tqdm=False))
    assert tokens(llm.generate(PROMPTS[::-1], params, use_tqdm=False)) == together[::-1]
    for prompt, expected in zip(PROMPTS, together, strict=True):
        assert tokens(llm.generate([prompt], params, use_tqdm=False)) == [expected]


def test_a_prompt_that_comes_twice_is_two_problems(llm):
    params = SamplingParams(n=4, max_tokens=12)
    first, second = tokens(llm.generate([PROMPTS[0], PROMPTS[0]], params, use_tqdm=False))
    assert first != second


def test_seeds(model_dir, llm):
    params = SamplingParams(n=2, max_tokens=12)
    seeded = LLM(model_dir("llama"), dtype="float32", seed=5)
    by_run = tokens(seeded.generate(PROMPTS, params, use_tqdm=False))
    by_params = SamplingParams(n=2, max_tokens=12, seed=5)
    assert tokens(llm.generate(PROMPTS, by_params, use_tqdm=False)) == by_run
    assert tokens(llm.generate(PROMPTS, params, use_tqdm=False)) != by_run


def test_parameters_for_each_prompt(llm):
    params = [SamplingParams(n=1 + i, max_tokens=3 + i, ignore_eos=True, temperature=i / 2) for i in range(4)]
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    assert [[len(ids) for ids in per] for per in tokens(outputs)] == [[3], [4] * 2, [5] * 3, [6] * 4]


def test_progress_goes_to_stderr(llm, capsys):
    llm.generate(PROMPTS, SamplingParams(max_tokens=2), use_tqdm=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "4/4" in err


MISTAKES = {
    "sampling_params: got '1 for 4 prompts'": lambda llm: llm.generate(PROMPTS, [SamplingParams()]),
    "prompts[0]: got {'text': 'x'}, expected text": lambda llm: llm.generate([{"text": "x"}]),
    "prompts[0]: got 'list', expected a flat list": lambda llm: llm.generate([{"prompt_token_ids": [[1]]}]),
    "tokenizer:": lambda llm: llm.generate("text"),
    "stop: got ('x',), expected none": lambda llm: llm.generate(PROMPTS, SamplingParams(stop="x")),
    "n: got 0": lambda llm: SamplingParams(n=0),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(llm, message):
    with pytest.raises(ConfigError) as caught:
        MISTAKES[message](llm)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_bad_models(tmp_path, model_dir):
    for name in ("", "./none", str(tmp_path), str(tmp_path / "x.gguf")):
        with pytest.raises(ModelLoadError) as caught:
            LLM(name)
        assert "\n" not in str(caught.value)
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelLoadError, match="cannot read"):
        LLM(tmp_path / "x.gguf")
    for options in ({"dtype": "int3"}, {"seed": -1}, {"max_num_seqs": 0}, {"threads": 0}, {"sharing": "no"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            LLM(model_dir("llama"), **options)


def test_a_folder_without_a_generation_config(model_dir, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model_dir("gpt2") / name).read_bytes())
    output = LLM(tmp_path).generate([PROMPTS[0]], SamplingParams(max_tokens=3), use_tqdm=False)
    assert len(output[0].outputs[0].token_ids) <= 3
