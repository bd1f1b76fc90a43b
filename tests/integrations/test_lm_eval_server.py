"""lm-eval's own client of OpenAI's endpoint against our server: its results are those of its ``hf`` model."""

# ruff: noqa: F401, F811 - fixtures are imported

from __future__ import annotations

import pytest

pytest.importorskip("lm_eval")

from tests.integrations.openai.serving import serving
from tests.integrations.test_lm_eval import assert_same, evaluate, few_tasks, folder, hf, tasks
from treeshare.engine.async_llm import AsyncLLM


def local_completions(served, folder, **options):
    """lm-eval's own client of OpenAI's endpoint, which asks for ``echo`` with ``logprobs``."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        model=served.client.models.list().data[0].id,
        base_url=f"{served.url}/v1/completions",
        tokenizer=str(folder),
        tokenizer_backend="huggingface",
        **options,
    )


def test_multiple_choice_by_the_server_is_that_of_hf(folder, hf, tasks):
    running = AsyncLLM(folder, dtype="float32")
    with serving(running) as served:
        client = local_completions(served, folder, batch_size=3, max_length=512)
        got = evaluate(client, [tasks["choices"]])
    running.close()
    expected = evaluate(hf, [tasks["choices"]])
    assert_same(got, expected)
    answers = {answer[0] for row in got["samples"]["choices"] for own in row["resps"] for answer in own}
    assert len(answers) > 3


@pytest.mark.slow
def test_multiple_choice_of_a_real_model_by_the_server_is_that_of_hf(tasks):
    from lm_eval.models.huggingface import HFLM

    from treeshare.models.loading import _resolve

    folder = _resolve("smollm2-135m", "float32")
    hf = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=4)
    running = AsyncLLM("smollm2-135m", dtype="float32")
    with serving(running) as served:
        client = local_completions(served, folder, batch_size=8)
        got = evaluate(client, [tasks["choices"]])
    running.close()
    # A logit of 16 to 32 has steps of 2e-6; a log-probability near 0 is the difference of two.
    assert_same(got, evaluate(hf, [tasks["choices"]]), rounding=16 * 2**-19)
