"""The report's page: what it says, and that no text of a model becomes anything but text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from tests.evals.made_runs import large_run, made_stats, make_manifest, result, write_run
from treeshare.errors import DataError
from treeshare.evals.report import write_report
from treeshare.evals.report.charts import Axis, number_axis
from treeshare.evals.report.timeline import Timeline
from treeshare.runs.tree_file import TreeFile

HOSTILE = [
    "</script><script>window.pwned = 1</script>",
    "<!--<script>",
    "]]></script ><img src=x onerror=window.pwned=1>",
    "\u2028\u2029\x00\x1b[31m\ud800 &lt;b&gt; &amp;",
    "</pre></style></title><svg onload=window.pwned=1>",
    "'\"><a href='javascript:window.pwned=1'>",
    "{{constructor}} ${window.pwned=1} \\u003c/script>",
]


class Scan(HTMLParser):
    """Elements with their attributes, and the texts of scripts."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.scripts, self.texts, self.is_script = [], [], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

        self.is_script = tag == "script"

    def handle_endtag(self, tag):
        self.is_script = False

    def handle_data(self, data):
        if self.is_script:
            self.scripts[-1] += data
        self.texts.append(data)

    def data(self, element_id):
        kinds = [attributes for tag, attributes in self.elements if tag == "script"]
        place = next(i for i, attributes in enumerate(kinds) if attributes.get("id") == element_id)
        return json.loads(self.scripts[place])


def scan(path):
    return Scan(path.read_text(encoding="utf-8"))


def hostile_run(path):
    completions = {f"{text}{i}": HOSTILE for i, text in enumerate(HOSTILE)}
    results = [
        result(task_id, i, i == 0, verdict=text, detail=text, answer=text)
        for task_id in completions
        for i, text in enumerate(HOSTILE)
    ]
    prompts = [[1, 2, number] for number in range(len(HOSTILE))]
    tree = TreeFile.of_prompts(prompts, lambda ids: HOSTILE[ids[-1] % len(HOSTILE)])
    manifest = make_manifest(completions, len(HOSTILE), model=HOSTILE[0], task=HOSTILE[2], data=HOSTILE[4])
    return write_run(path, completions, results=results, manifest=manifest, tree=tree, stats=made_stats())


def test_hostile_text_stays_text(tmp_path):
    page = scan(write_report(hostile_run(tmp_path / "run"))[0])
    kinds = [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
    assert kinds.count(None) == 1
    assert kinds.count("application/json") == 2 + len(HOSTILE)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"img", "a", "iframe", "object", "embed", "base", "form", "link"}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not any({"src", "href"} & attributes.keys() for _, attributes in page.elements)
    for i in range(len(HOSTILE)):
        assert [entry["text"] for entry in page.data(f"c{i}")] == HOSTILE
        assert [entry["detail"] for entry in page.data(f"c{i}")] == HOSTILE
    assert [row["id"] for row in page.data("problem-rows")] == [f"{t}{i}" for i, t in enumerate(HOSTILE)]
    assert {node["text"] for node in page.data("tree-nodes")} <= set(HOSTILE)
    assert HOSTILE[0] in "".join(page.texts)


def test_one_script_may_run_and_nothing_is_loaded(tmp_path):
    page = scan(write_report(large_run(tmp_path / "run", num_problems=6, n=4))[0])
    [policy] = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}';" in policy
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg", "", page.scripts[-1])
    assert "innerHTML" not in page.scripts[-1]
    assert "url(" not in "".join(page.texts)


def test_what_a_run_has_is_there(tmp_path):
    path, num_bytes = write_report(large_run(tmp_path / "run"), tmp_path / "page.html")
    assert path.stat().st_size == num_bytes < 200_000
    page = scan(path)
    text = " ".join(page.texts)
    for heading in ("pass@k", "majority@k", "n@k", "Verdicts", "Problems", "Calibration", "Prompt tree"):
        assert heading in text
    assert "mean, Platt" in text
    assert "tail, isotonic" in text
    assert "all made, 384 checked" in text
    rows = page.data("problem-rows")
    assert (len(rows), sum(row["n"] for row in rows)) == (24, 384)
    groups = page.data("c3")
    assert sorted(index for group in groups for index in group["indices"]) == list(range(16))
    nodes = page.data("tree-nodes")
    assert nodes[0]["completions"] == 384
    assert nodes[0]["decode_s"] == pytest.approx(68 + 28)
    assert sum(node["prefill_s"] for node in nodes) == pytest.approx(8.0, rel=1e-3)


def test_what_a_run_lacks_is_said(tmp_path):
    run = write_run(tmp_path / "run", {"a": ["x", "y"], "b": ["z", ""]})
    text = " ".join(scan(write_report(run)[0]).texts)
    assert "No completion has been checked yet" in text
    assert "The run has no tree.json" in text
    assert "The run has no stats.jsonl" in text
    assert "not checked" in text
    run = write_run(tmp_path / "half", {"a": ["x", "y"], "b": ["z", ""]}, results=[result("a", 0, True)])
    text = " ".join(scan(write_report(run)[0]).texts)
    assert "all made, 1 checked" in text
    assert "tail is missing: a completion 0: has no logprobs; sample with --logprobs 0." in text
    assert "mean with platt is missing: rescaling: got 1 problems" in text


def test_an_empty_run_has_a_report(tmp_path):
    (tmp_path / "run").mkdir()
    make_manifest(["a"], 1).write(tmp_path / "run" / "manifest.json")
    (tmp_path / "run" / "samples.jsonl").touch()
    text = " ".join(scan(write_report(tmp_path / "run")[0]).texts)
    assert "There are no completions yet." in text


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 1: not JSON"),
        ('{"task_id": "a", "completion_index": 0, "passed": 1, "verdict": ""}', "line 1: passed"),
        ('{"task_id": "a", "completion_index": 7, "passed": true, "verdict": ""}', "completion 7 is not in"),
        (
            '{"task_id": "a", "completion_index": 0, "passed": true, "verdict": ""}\n' * 2,
            "line 2: a completion 0",
        ),
    ],
)
def test_broken_results_are_refused(tmp_path, line, complaint):
    run = write_run(tmp_path / "run", {"a": ["x"]})
    (run / "results.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=complaint):
        write_report(run)


def test_sessions_come_one_after_another():
    timeline = Timeline.of_lines(made_stats())
    assert (timeline.wall_s, timeline.starts) == (130.0, [90.0])
    assert timeline.prefill_s == 8.0
    assert timeline.num_tokens == 400 * 90 * 7 // 10 + 400 * 40 * 7 // 10
    assert max(t for t, _ in timeline.speed) > 120
    assert timeline.peak_rss_bytes == 990 << 20
    assert Timeline.of_lines(made_stats()[:2]) is None
    assert Timeline.of_lines([]) is None


@pytest.mark.parametrize(
    ("high", "end", "num_ticks"), [(1.0, 1.0, 6), (0.03, 0.03, 4), (417, 500, 6), (9.6, 10, 6)]
)
def test_axes_end_at_round_numbers(high, end, num_ticks):
    axis = number_axis(high)
    assert axis.high == pytest.approx(end)
    assert len(axis.ticks) == num_ticks
    assert axis.place(axis.high / 2) == 0.5
    assert Axis(low=1, high=16, ticks=[], is_log=True).place(4) == pytest.approx(0.5)
