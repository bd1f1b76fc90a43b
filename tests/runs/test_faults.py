"""Full disks, failing disks, interrupts, kills: what the journal holds stays whole."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import signal
import subprocess
import threading
import time

import pytest

from tests.processes import forkserver
from tests.runs.test_directory import manifest
from tests.runs.test_journal import record
from treeshare.errors import DataError, RunLockedError
from treeshare.runs import Journal, RunDirectory, read_records, read_run


def in_child(target, *arguments):
    """A process that runs ``target(sender, *arguments)``, and the other end of ``sender``."""
    receiver, sender = forkserver.Pipe(duplex=False)
    child = forkserver.Process(target=target, args=(sender, *arguments))
    child.start()
    sender.close()
    return child, receiver


@pytest.fixture
def tiny_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def append_all(run):
    for index in run.remaining("T/0"):
        run.append(record(index, "x" * 1000))


def test_a_full_disk_leaves_a_run_that_can_be_resumed(tiny_disk):
    out = tiny_disk / "run"
    with RunDirectory(out, manifest(n=1000)) as run:
        with pytest.raises(DataError, match="No space left on device; free disk space and resume"):
            append_all(run)
        num_written = len(run.finished)
        with pytest.raises(DataError, match="No space left"):
            run.append(record(num_written, "x" * 1000))
    assert 10 < num_written < 100
    assert (out / "samples.jsonl").read_bytes().endswith(b"\n")
    assert [r.completion_index for r in read_run(out)[1]] == list(range(num_written))
    with pytest.raises(DataError, match=r"cannot write .*manifest\.json: No space left"):
        RunDirectory(out, manifest(n=1001))
    assert read_run(out)[0].n == 1000
    subprocess.run(["mount", "-o", "remount,size=4m", str(tiny_disk)], check=True)
    with RunDirectory(out, manifest(n=1000)) as run:
        assert run.num_torn_bytes == 0
        append_all(run)
    assert [r.completion_index for r in read_run(out)[1]] == list(range(1000))


def write_within_a_limit(sender, path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
    journal = Journal(path)
    try:
        for index in range(1000):
            journal.append(record(index, "y" * 300))
    except DataError as error:
        sender.send(str(error))
    journal.close()


def test_a_file_size_limit_leaves_whole_lines(tmp_path):
    path = tmp_path / "samples.jsonl"
    child, receiver = in_child(write_within_a_limit, path)
    assert "File too large; free disk space and resume" in receiver.recv()
    child.join()
    assert child.exitcode == 0
    records, size = read_records(path)
    assert size == path.stat().st_size <= 5000
    assert [r.completion_index for r in records] == list(range(len(records)))
    assert len(records) > 5


def test_a_torn_line_that_cannot_be_cut_away_is_cut_away_later(tmp_path, monkeypatch):
    path = tmp_path / "samples.jsonl"
    journal = Journal(path)
    journal.append(record(0))
    write_bytes, calls = os.write, []

    def half(descriptor, content):
        calls.append(content)
        if len(calls) > 1:
            raise OSError(errno.EIO, "Input/output error")
        return write_bytes(descriptor, content[:20])

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(DataError, match="Input/output error"):
            journal.append(record(1))
        assert read_records(path)[0] == [record(0)]
        with pytest.raises(DataError, match="Input/output error"):
            journal.append(record(1))
    journal.append(record(1))
    journal.close()
    assert path.read_bytes() == record(0).line() + record(1).line()


def test_after_a_failed_fsync_nothing_more_is_taken(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "samples.jsonl", fsync_interval_s=0)

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(DataError, match="Input/output error"):
            journal.append(record(0))
    with pytest.raises(DataError, match="Input/output error"):
        journal.append(record(1))
    with pytest.raises(DataError, match="Input/output error"):
        journal.close()
    journal.close()
    assert read_records(tmp_path / "samples.jsonl")[0] == [record(0)]


def test_fsync_follows_a_write_without_another_write(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "samples.jsonl", fsync_interval_s=0.1)
    synced = threading.Event()
    fsync, calls = os.fsync, []

    def note(descriptor):
        calls.append(descriptor)
        fsync(descriptor)
        synced.set()

    monkeypatch.setattr(os, "fsync", note)
    for index in range(50):
        journal.append(record(index))
    num_calls = len(calls)
    assert num_calls < 25
    assert synced.wait(10)
    journal.close()


def test_without_threads_fsync_is_done_at_once(tmp_path, monkeypatch):
    def fail(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    journal = Journal(tmp_path / "samples.jsonl")
    journal.append(record(0))
    journal.close()
    assert read_records(tmp_path / "samples.jsonl")[0] == [record(0)]


def test_closing_twice_and_writing_after_closing(tmp_path):
    run = RunDirectory(tmp_path / "run", manifest())
    run.close()
    other = os.open(tmp_path, os.O_RDONLY)
    run.close()
    os.close(other)  # still ours
    with pytest.raises(DataError, match="is closed"):
        run.append(record(0))


def test_a_journal_has_one_writer_even_without_the_lock_file(tmp_path):
    with RunDirectory(tmp_path / "run", manifest()):
        (tmp_path / "run" / ".lock").unlink()
        with pytest.raises(RunLockedError, match="being written by another process"):
            RunDirectory(tmp_path / "run", manifest())


def write_through_interrupts(sender, out):
    num_interrupts, is_armed = 0, False

    def interrupt(*_):
        nonlocal is_armed
        if is_armed:  # not while the last interrupt is looked into
            is_armed = False
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    sender.send("ready")
    run = RunDirectory(out, manifest(n=3000))
    while True:
        try:
            is_armed = True
            for index in run.remaining("T/0"):
                run.append(record(index, "z" * (index % 313)))
            is_armed = False
            break
        except KeyboardInterrupt:
            num_interrupts += 1
            content = (out / "samples.jsonl").read_bytes()
            assert content[-1:] in (b"", b"\n"), "torn"
            assert content.count(b"\n") == len(run.finished), "lost or repeated"
    run.close()
    sender.send(num_interrupts)
    os._exit(0)  # a process that ends normally puts the default back, and the next interrupt ends it


def test_interrupts_tear_and_lose_and_repeat_nothing(tmp_path):
    child, receiver = in_child(write_through_interrupts, tmp_path / "run")
    assert receiver.recv() == "ready"
    deadline = time.monotonic() + 1.0
    while child.is_alive() and time.monotonic() < deadline:
        os.kill(child.pid, signal.SIGINT)
        time.sleep(0.0015)
    assert receiver.recv() > 3
    child.join()
    assert child.exitcode == 0
    assert [r.completion_index for r in read_run(tmp_path / "run")[1]] == list(range(3000))


def write_and_extend(sender, out):
    with RunDirectory(out, manifest(n=10)):
        sender.send("ready")
    for n in range(100, 3001, 100):
        with RunDirectory(out, manifest(n=n)) as run:
            for index in run.remaining("T/0"):
                run.append(record(index, "w" * 500))


def test_reading_while_another_process_writes_and_extends(tmp_path):
    writer, receiver = in_child(write_and_extend, tmp_path / "run")
    assert receiver.recv() == "ready"
    sizes = []
    while writer.is_alive():
        held, records = read_run(tmp_path / "run")
        assert len(records) <= held.n
        assert [r.completion_index for r in records] == list(range(len(records)))
        sizes.append(len(records))
    writer.join()
    assert writer.exitcode == 0
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 1
    assert len(read_run(tmp_path / "run")[1]) == 3000


def extend(sender, out, n):
    sender.send("ready")
    with RunDirectory(out, manifest(n=n)) as run:
        for index in run.remaining("T/0"):
            run.append(record(index, "k" * (index % 31)))


def test_a_run_killed_while_it_is_opened_and_extended_goes_on(tmp_path):
    out, rng = tmp_path / "a" / "b" / "run", random.Random(1)
    for attempt in range(24):
        child, receiver = in_child(extend, out, min(20 * (attempt + 1), 160))
        assert receiver.recv() == "ready"
        time.sleep(rng.random() * 0.004)
        child.kill()
        child.join()
    with RunDirectory(out, manifest(n=160)) as run:
        for index in run.remaining("T/0"):
            run.append(record(index, "k" * (index % 31)))
    assert sorted(path.name for path in out.iterdir()) == [".lock", "manifest.json", "samples.jsonl"]
    held, records = read_run(out)
    assert held == manifest(n=160)
    assert {r.line() for r in records} == {record(i, "k" * (i % 31)).line() for i in range(160)}


def test_a_limit_on_open_files_is_no_traceback(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc")
    with RunDirectory(tmp_path / "run", manifest()):
        pass
    for spare in range(4):
        descriptors = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 40, hard))
        try:
            while True:
                try:
                    descriptors.append(os.open("/dev/null", os.O_RDONLY))
                except OSError:
                    break
            for _ in range(spare):
                os.close(descriptors.pop())
            with contextlib.suppress(DataError):  # and nothing else
                RunDirectory(tmp_path / "run", manifest()).close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in descriptors:
                os.close(descriptor)
    with RunDirectory(tmp_path / "run", manifest()):
        pass
