"""The report in a browser, at desktop and phone width."""

from __future__ import annotations

import shutil
import time

import pytest

from tests.evals import chromium
from tests.evals.made_runs import large_run, write_run
from tests.evals.test_report import HOSTILE, hostile_run
from treeshare.evals.report import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="no chromium here: apt-get install chromium"),
    pytest.mark.skipif(shutil.which("bash") is None, reason="no bash, which hands over the pipes"),
]

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
OPEN_ALL = "document.querySelectorAll('details').forEach((d) => { d.open = true; })"


@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_asks_for_nothing(tmp_path, width):
    path, _ = write_report(large_run(tmp_path / "run"))
    with chromium.Page(tmp_path / "profile", width) as page:
        page.open(path)
        assert page.evaluate("innerWidth") == width
        assert page.evaluate(OVERFLOW) == 0
        page.evaluate(OPEN_ALL)
        time.sleep(0.5)
        page.evaluate(OPEN_ALL)  # the prompts inside
        assert page.evaluate("document.querySelectorAll('.completion').length") > 24
        assert page.evaluate("document.querySelectorAll('pre').length") > 48
        assert page.evaluate(OVERFLOW) == 0
        assert page.evaluate("document.querySelectorAll('#icicle rect').length") == 29
        assert page.requests == [path.as_uri()]
        assert page.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_text_runs_nothing_and_is_shown_as_it_is(tmp_path, width):
    path, _ = write_report(hostile_run(tmp_path / "run"))
    with chromium.Page(tmp_path / "profile", width) as page:
        page.open(path)
        page.evaluate(OPEN_ALL)
        time.sleep(0.5)
        shown = page.evaluate("[...document.querySelectorAll('.completion pre')].map((p) => p.textContent)")
        readable = [text for text in HOSTILE if "\ud800" not in text]
        assert [text for text in shown if "[31m" not in text] == readable * len(HOSTILE)
        assert page.evaluate("window.pwned === undefined")
        assert page.evaluate(OVERFLOW) == 0
        assert page.requests == [path.as_uri()]
        assert page.complaints == []


def test_thousands_of_completions_stay_usable(tmp_path):
    body = "    x = 1\n" * 30
    completions = {f"T/{i}": [f"{body}    return {j}\n" for j in range(100)] for i in range(400)}
    path, num_bytes = write_report(write_run(tmp_path / "run", completions))
    assert num_bytes < 25 << 20
    with chromium.Page(tmp_path / "profile", 390) as page:
        began = time.monotonic()
        page.open(path)
        assert time.monotonic() - began < 30
        assert page.evaluate("document.querySelectorAll('.problem').length") == 100
        page.evaluate("document.getElementById('more').click()")
        assert page.evaluate("document.querySelectorAll('.problem').length") == 200
        page.evaluate("document.querySelector('.problem').open = true")
        time.sleep(0.5)
        assert page.evaluate("document.querySelectorAll('.completion').length") == 20
        page.evaluate("document.querySelector('.inside > button').click()")
        assert page.evaluate("document.querySelectorAll('.completion').length") == 40
        find = (
            "const f = document.getElementById('find'); f.value = 't/39'; f.dispatchEvent(new Event('input'))"
        )
        page.evaluate(find)
        assert page.evaluate("document.querySelectorAll('.problem').length") == 11
        assert page.complaints == []


def test_the_tree_comes_nearer(tmp_path):
    path, _ = write_report(large_run(tmp_path / "run"))
    with chromium.Page(tmp_path / "profile", 390) as page:
        page.open(path)
        click = "document.querySelectorAll('#icicle rect')[%d].dispatchEvent(new MouseEvent('click'))"
        page.evaluate(click % 1)
        assert page.evaluate("document.querySelectorAll('#icicle rect').length") == 7
        assert page.evaluate("document.querySelectorAll('#path button').length") == 2
        page.evaluate("document.querySelector('#path button').click()")
        assert page.evaluate("document.querySelectorAll('#icicle rect').length") == 29
        assert page.complaints == []
