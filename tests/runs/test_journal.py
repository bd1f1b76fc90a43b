"""The journal: whole lines only, whatever happens to the process or the disk."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import random
import signal
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.processes import forkserver
from treeshare.errors import DataError
from treeshare.runs import Journal, Record, read_records


def record(index=0, text="x", task_id="T/0", logprob=-1.5):
    return Record(
        task_id=task_id,
        completion_index=index,
        completion=text,
        token_ids=[1, 2],
        finish_reason="stop",
        cumulative_logprob=logprob,
    )


def write(path, records):
    journal = Journal(path)
    for item in records:
        journal.append(item)
    journal.close()


@given(
    text=st.text(st.characters()),
    logprob=st.floats(allow_nan=False, allow_infinity=False),
    stop_reason=st.none() | st.integers(0, 1 << 40) | st.text(),
    extra=st.dictionaries(st.sampled_from(["logprobs", "a", "zeta"]), st.lists(st.floats(-9, 0)) | st.text()),
)
@example(text="a\ud800", logprob=-0.0, stop_reason="\u2028\r\n\x85\x00", extra={})
@example(
    text="\udfff\ud800\U0001f600", logprob=5e-324, stop_reason=None, extra={"zeta": "\udc00", "a": [-0.1]}
)
def test_round_trip(tmp_path_factory, text, logprob, stop_reason, extra):
    path = tmp_path_factory.mktemp("journal") / "samples.jsonl"
    written = Record(
        **(record(text=text, logprob=logprob).model_dump() | {"stop_reason": stop_reason} | extra)
    )
    write(path, [written])
    records, size = read_records(path)
    assert records == [written]
    assert records[0].line() == written.line()
    assert math.copysign(1, records[0].cumulative_logprob) == math.copysign(1, logprob)
    assert size == path.stat().st_size
    assert path.read_bytes().count(b"\n") == 1
    assert json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))["completion"] == text


def test_a_lone_surrogate_is_escaped():
    line = record(text="a\ud800\u2028").line()
    assert json.loads(line)["completion"] == "a\ud800\u2028"
    assert line.count(b"\n") == 1


@pytest.mark.parametrize("logprob", [math.nan, math.inf])
def test_not_a_number_is_refused(logprob):
    with pytest.raises(DataError, match="cumulative_logprob"):
        record(logprob=logprob).line()


def test_a_torn_last_line_is_cut_away_wherever_it_is_torn(tmp_path):
    path = tmp_path / "samples.jsonl"
    records = [record(i, "é\n" * i) for i in range(3)]
    whole = b"".join(item.line() for item in records)
    kept = len(whole) - len(records[-1].line())
    for size in range(kept, len(whole)):
        path.write_bytes(whole[:size])
        assert read_records(path) == (records[:2], kept)
        journal = Journal(path)
        assert journal.num_torn_bytes == size - kept
        journal.append(records[2])
        journal.close()
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"not json\n", "line 2: not JSON"),
        (b'{"task_id": "T/1"}\n', "line 2: completion_index: Field required"),
        (record(0).line(), "line 2: T/0 completion 0 is already in line 1"),
        (b"\x00\xff\n", "line 2"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(record(0).line() + line + record(1).line())
    with pytest.raises(DataError, match=message) as caught:
        Journal(path)
    assert "\n" not in str(caught.value)


def test_a_last_line_that_is_json_but_no_record_is_not_cut_away(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"format": 2, "task_id": "T/0"}\n')
    with pytest.raises(DataError, match="line 1: completion_index: Field required"):
        Journal(path)
    assert path.read_bytes() == b'{"format": 2, "task_id": "T/0"}\n'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"-1.5", b"NaN", "NaN is not a finite number"),
        (b"-1.5", b"1e999", "expected a finite number"),
        (b"-1.5", b'"-1.5"', "cumulative_logprob"),
        (b"[1, 2]", b'["1"]', r"token_ids\.0"),
        (b"[1, 2]", b"[true]", r"token_ids\.0"),
        (b"[1, 2]", b"[-1]", r"token_ids\.0"),
        (b"[1, 2]", b"[" * 100_000, "line 1"),
        (b'"T/0"', b'"T/0\xff"', "line 1"),
    ],
)
def test_values_are_read_strictly(tmp_path, old, new, message):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(record(0).line().replace(old, new) + record(1).line())
    with pytest.raises(DataError, match=message) as caught:
        read_records(path)
    assert "\n" not in str(caught.value)


def test_extra_keys_have_one_order():
    values = record().model_dump()
    assert Record(**values, b=1, a=2).line() == Record(**values, a=2, b=1).line()
    with pytest.raises(DataError, match="cannot be written"):
        Record(**values, a=math.nan).line()
    with pytest.raises(DataError, match="cannot be written"):
        Record(**values, a={1, 2}).line()


def test_a_duplicate_in_the_last_line_is_named(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(record(0).line() * 2)
    with pytest.raises(DataError, match="is already in line 1"):
        read_records(path)


@pytest.mark.parametrize("num_bytes", [0, 1, 40])
def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch, num_bytes):
    path = tmp_path / "samples.jsonl"
    journal = Journal(path)
    journal.append(record(0))
    calls = []

    def full(descriptor, content):
        calls.append(content)
        if len(calls) == 1 and num_bytes:
            return write_bytes(descriptor, content[:num_bytes])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_bytes = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(DataError, match="No space left on device; free disk space and resume"):
            journal.append(record(1))
    assert path.read_bytes() == record(0).line()
    journal.append(record(1))
    journal.close()
    assert path.read_bytes() == record(0).line() + record(1).line()


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write_bytes = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write_bytes(descriptor, content[:7]))
    write(tmp_path / "samples.jsonl", [record(i) for i in range(3)])
    assert read_records(tmp_path / "samples.jsonl")[0] == [record(i) for i in range(3)]


def write_until_killed(path, count, handed_over):
    journal = Journal(path)
    held = {index for _, index in journal.keys}
    for i in range(count):
        if i not in held:
            journal.append(record(i, "y" * (i % 977)))
            if handed_over is not None:
                handed_over.send(i)
    journal.close()


def received(connection):
    with contextlib.suppress(EOFError):
        while True:
            yield connection.recv()


def test_kill_9_loses_nothing_that_was_handed_over(tmp_path):
    path, count, rng = tmp_path / "samples.jsonl", 3000, random.Random(0)
    num_killed = 0
    for _ in range(10):
        receiver, sender = forkserver.Pipe(duplex=False)
        writer = forkserver.Process(target=write_until_killed, args=(path, count, sender))
        writer.start()
        sender.close()
        first = receiver.recv()
        time.sleep(rng.random() * 0.01)
        writer.kill()
        handed_over = {first, *received(receiver)}
        writer.join()
        num_killed += writer.exitcode == -signal.SIGKILL
        assert {r.completion_index for r in read_records(path)[0]} >= handed_over
        if len(read_records(path)[0]) == count:
            path.unlink()
    assert num_killed >= 7
    write_until_killed(path, count, None)
    undisturbed = tmp_path / "undisturbed.jsonl"
    write_until_killed(undisturbed, count, None)
    assert path.read_bytes() == undisturbed.read_bytes()
