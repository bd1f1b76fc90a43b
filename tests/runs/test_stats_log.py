"""The log of speed and memory, and the tree beside the journal."""

from __future__ import annotations

import os
import time

import pytest

from treeshare.engine.llm import LLM
from treeshare.engine.stats import EngineStats
from treeshare.errors import DataError
from treeshare.runs import RunDirectory, make_manifest, make_requests, read_run, sample_into
from treeshare.runs.stats_log import StatsLog, read_stats
from treeshare.runs.tree_file import TreeFile
from treeshare.sampling import SamplingParams


def test_lines_are_written_while_it_runs_and_at_both_ends(tmp_path):
    stats = EngineStats()
    with StatsLog(tmp_path / "stats.jsonl", lambda: stats, interval_s=0.01):
        stats.num_tokens, stats.decode_s = 5, 0.25
        deadline = time.perf_counter() + 60
        while len(read_stats(tmp_path / "stats.jsonl")) < 3 and time.perf_counter() < deadline:
            time.sleep(0.01)
        stats.num_tokens = 9
    lines = read_stats(tmp_path / "stats.jsonl")
    assert len(lines) >= 4
    numbers = [line.num_tokens for line in lines]
    assert (numbers[0], numbers[-1]) == (0, 9)
    assert 5 in numbers
    assert lines[-1].decode_s == 0.25
    assert [line.t_s for line in lines] == sorted(line.t_s for line in lines)
    assert lines[-1].rss_bytes > 1 << 20


def test_a_new_session_goes_on_after_a_torn_line(tmp_path):
    path = tmp_path / "stats.jsonl"
    with StatsLog(path, EngineStats):
        pass
    path.write_bytes(path.read_bytes() + b'{"session": 0, "t_s"')
    with StatsLog(path, EngineStats):
        pass
    assert [line.session for line in read_stats(path)] == [0, 0, 1, 1]


@pytest.mark.parametrize("hindrance", ["folder", "pipe", "link", "full"])
def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, hindrance):
    path, victim = tmp_path / "stats.jsonl", tmp_path / "victim"
    victim.write_bytes(b"")
    if hindrance == "folder":
        path.mkdir()
    elif hindrance == "pipe":
        os.mkfifo(path)
    elif hindrance == "link":
        path.symlink_to(victim)
    log = StatsLog(path, EngineStats)
    if hindrance == "full":
        os.close(log._descriptor)
        log._descriptor = os.open("/dev/full", os.O_WRONLY)
    with log:
        pass
    assert victim.read_bytes() == b""


def test_no_log_is_no_lines_and_a_log_that_is_none_is_refused(tmp_path):
    assert read_stats(tmp_path / "stats.jsonl") == []
    (tmp_path / "stats.jsonl").mkdir()
    with pytest.raises(DataError, match="stats: cannot read"):
        read_stats(tmp_path / "stats.jsonl")


def test_a_run_leaves_its_tree_and_its_log(tmp_path, model_dir):
    llm = LLM(model_dir("llama"), dtype="float32")
    prompts = [[5, 6, 7, 8], [5, 6, 9]]
    params = SamplingParams(n=2, max_tokens=4, temperature=1.0, ignore_eos=True)
    for n in (2, 3):
        params = SamplingParams(n=n, max_tokens=4, temperature=1.0, ignore_eos=True)
        manifest = make_manifest(llm, task="t", data="", task_ids=["a", "b"], prompts=prompts, params=params)
        with RunDirectory(tmp_path / "run", manifest) as directory:
            requests = make_requests(["a", "b"], prompts, params, directory)
            sample_into(directory, llm, ["a", "b"], requests)
    tree = TreeFile.read(tmp_path / "run" / "tree.json")
    assert [(node.parent, node.start, node.num_tokens, node.problems) for node in tree.nodes] == [
        (-1, 0, 2, []),
        (0, 2, 2, [0]),
        (0, 2, 1, [1]),
    ]
    lines = read_stats(tmp_path / "run" / "stats.jsonl")
    last = {line.session: line for line in lines}
    assert [last[session].num_finished for session in (0, 1)] == [4, 2]
    assert last[0].num_tokens == 16
    assert last[0].peak_kv_bytes > 0
    assert len(read_run(tmp_path / "run")[1]) == 6


def test_a_trees_text_is_that_of_its_segments(tmp_path):
    tree = TreeFile.of_prompts([[1, 2, 3], [1, 2, 4]], lambda ids: "".join(map(str, ids)))
    (tmp_path / ".tree.json-0123abcd").touch()
    tree.write(tmp_path / "tree.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tree.json"]
    assert TreeFile.read(tmp_path / "tree.json") == tree
    assert [node.text for node in tree.nodes] == ["12", "3", "4"]
    assert TreeFile.read(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "not JSON"),
        (b"[]", "remove the file"),
        (b'{"nodes": [{"parent": 0, "start": 0, "num_tokens": 1, "text": null, "problems": []}]}', "node 0"),
        (b'{"nodes": [{"parent": -1, "start": -1, "num_tokens": 1, "text": null, "problems": []}]}', "start"),
    ],
)
def test_a_broken_tree_is_refused(tmp_path, content, complaint):
    (tmp_path / "tree.json").write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        TreeFile.read(tmp_path / "tree.json")
