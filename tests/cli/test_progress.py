"""The progress line: what it says, when it moves, and what it leaves alone."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest

from treeshare import SamplingParams
from treeshare.cli.progress import Progress, SamplingProgress
from treeshare.engine.stats import EngineStats


def request(num_completions, max_tokens):
    return SimpleNamespace(
        completion_indices=range(num_completions), params=SamplingParams(max_tokens=max_tokens)
    )


def sampling(**stats):
    llm = SimpleNamespace(stats=EngineStats(**stats))
    return SamplingProgress(llm, [request(6, 100), request(4, 100)])


def test_before_the_first_token_prompts_are_counted():
    progress = sampling(prefilled_tokens=1234)
    assert progress.line() == "completions: 0 of 10, 1,234 prompt tokens, 0:00"


def test_until_something_finishes_the_longest_is_expected():
    progress = sampling(num_tokens=200, wall_s=4.0)
    assert progress.line() == "completions: 0 of 10, 50 tokens/s, 0:00, about 0:16 left"


def test_time_left_follows_the_mean_length():
    progress = sampling(num_tokens=200, wall_s=4.0, num_finished=5)
    for _ in range(5):
        progress.update(None)
    assert progress.line() == "completions: 5 of 10, 50 tokens/s, 0:00, about 0:04 left"


def test_short_ones_that_finish_first_do_not_promise_too_much():
    progress = sampling(num_tokens=500, wall_s=10.0, num_finished=1)
    progress.update(None)
    assert progress.left_s() == pytest.approx((10 * 100 - 500) / 50)


def test_long_times(monkeypatch):
    progress = Progress(4, "things")
    monkeypatch.setattr(time, "monotonic", lambda: progress._started + 3661)
    progress.update()
    assert progress.line() == "things: 1 of 4, 1:01:01, about 3:03:03 left"


def test_a_terminal_sees_one_line_that_moves(monkeypatch):
    reader, terminal = os.openpty()
    monkeypatch.setattr("treeshare.cli.progress._STDERR", terminal)
    with Progress(3, "things") as progress:
        time.sleep(1.2)
        progress.update()
    shown = ""
    while not shown.endswith("\n"):
        shown += os.read(reader, 4096).decode()
    os.close(reader)
    os.close(terminal)
    assert shown.count("\n") == 1
    assert shown.count("\rthings: 0 of 3") >= 1
    assert shown.endswith("\x1b[K\r\n")
    assert "things: 1 of 3" in shown


def test_a_log_file_gets_the_last_line_only(capfd):
    with Progress(2, "things") as progress:
        progress.update()
        progress.update()
    assert capfd.readouterr().err == "things: 2 of 2, 0:00\n"


def test_nothing_to_do_and_an_early_failure_show_nothing(capfd):
    with Progress(0, "things"):
        pass
    with pytest.raises(ValueError, match="early"), Progress(2, "things"):
        raise ValueError("early")
    assert capfd.readouterr().err == ""


def test_a_reader_that_has_gone_stops_nothing(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr("treeshare.cli.progress._STDERR", writer)
    with Progress(1, "things") as progress:
        progress.update()
    os.close(writer)
