"""Outputs in a notebook."""

from __future__ import annotations

from treeshare import CompletionOutput, RequestOutput


def _output(text, prompt="1 < 2"):
    completion = CompletionOutput(
        index=0,
        text=text,
        token_ids=[5, 6],
        cumulative_logprob=-1.25,
        logprobs=None,
        finish_reason="stop",
        stop_reason=None,
        weight_versions=[0, 0],
    )
    return RequestOutput(
        request_id="0",
        prompt=prompt,
        prompt_token_ids=[1, 2, 3],
        outputs=[completion],
        finished=True,
        num_cached_tokens=2,
        ended="first <success>",
    )


def test_a_table_of_completions_in_which_no_text_is_markup():
    page = _output("<b>7</b>")._repr_html_()
    assert "<b>" not in page
    assert "&lt;b&gt;7&lt;/b&gt;" in page
    assert "1 &lt; 2" in page
    assert "3 prompt tokens, 2 shared; ended: first &lt;success&gt;" in page
    assert "-1.25" in page


def test_without_a_tokenizer_token_ids_are_shown():
    page = _output("", prompt=None)._repr_html_()
    assert "[5, 6]" in page
    assert "[1, 2, 3]" in page


def test_of_a_long_prompt_its_end_is_shown():
    page = _output("x", prompt="a" * 5000 + "end")._repr_html_()
    assert "end" in page
    assert len(page) < 2000
