"""The report: one HTML file that needs nothing else and asks for nothing.

Completions are hostile text. Three things keep them text: everything is escaped where it is written, the
page's script only ever sets text, and a content security policy lets no script run but that one, by its hash,
and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from treeshare.evals.judged import JudgedRun
from treeshare.evals.metrics import calibration_rows, filtered_table, majority_curve, pass_curve
from treeshare.evals.report import sections
from treeshare.evals.report.data import completions_of, script_json, summaries, tree_nodes
from treeshare.evals.report.timeline import Timeline
from treeshare.files import write_atomically, write_output
from treeshare.runs.stats_log import STATS_NAME, read_stats
from treeshare.runs.tree_file import TREE_NAME, TreeFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from treeshare.runs.stats_log import StatsLine

REPORT_NAME = "report.html"


def write_report(directory: Path, out: Path | None = None) -> tuple[Path, int]:
    """Write the report of a run directory.

    Args:
        directory: The run; evaluated or not, finished or not.
        out: The file, replaced if it exists; ``report.html`` in the run directory by default.

    Returns:
        Where it is, and its size in bytes.

    Raises:
        DataError: If the run cannot be read or the file cannot be written.
    """
    run = JudgedRun.read(directory)
    tree, lines = TreeFile.read(directory / TREE_NAME), read_stats(directory / STATS_NAME)
    # A lone surrogate in a task's id has no UTF-8; in completions it is escaped already.
    content = render_report(run, tree, lines).encode("utf-8", "replace")
    if out is not None:
        write_output(out, content)
        return out, len(content)
    write_atomically(directory / REPORT_NAME, content)
    return directory / REPORT_NAME, len(content)


def render_report(run: JudgedRun, tree: TreeFile | None, lines: Sequence[StatsLine]) -> str:
    """The page as text.

    Args:
        run: What is reported.
        tree: Its prompts' tree; the section says so if there is none.
        lines: Its log of speed and memory.
    """
    checked = run.checked()
    curve = pass_curve(checked)
    timeline = Timeline.of_lines(lines)
    rows, notes = calibration_rows(checked)
    body = [
        sections.tiles(run, curve, timeline),
        sections.pass_section(curve),
        sections.choice_sections(majority_curve(checked), filtered_table(checked)),
        sections.verdict_section(run),
        sections.section("Problems", _CONTROLS),
        sections.calibration_section(rows, notes),
        _tree_section(tree),
        sections.time_section(timeline),
        sections.manifest_section(run.manifest),
        script_json("problem-rows", summaries(run)),
        script_json("tree-nodes", [] if tree is None else tree_nodes(run, tree, timeline)),
    ]
    body += [
        script_json(f"c{i}", completions_of(completions))
        for i, completions in enumerate(run.problems.values())
    ]
    manifest = run.manifest
    title = f"{manifest.task}, {manifest.model}"
    subtitle = f"temperature {manifest.sampling.get('temperature')}, seed {manifest.seed}, {manifest.dtype}; "
    return _document(title, subtitle + f"started {manifest.created}", "".join(body))


_CONTROLS = """
<noscript><p class="note">The problems and the tree need JavaScript; the rest does not.</p></noscript>
<div class="controls">
<label>Find <input id="find" type="search" placeholder="part of an id"></label>
<label>Verdict <select id="verdict"><option value="">any</option></select></label>
<label>Order <select id="order"><option value="run">the run's</option>
<option value="hard">fewest right first</option><option value="easy">most right first</option>
<option value="long">most tokens first</option></select></label>
<span id="shown" class="note"></span></div>
<div id="list"></div><button id="more" type="button" hidden>Show more problems</button>"""


def _tree_section(tree: TreeFile | None) -> str:
    if tree is None:
        return sections.section("Prompt tree", "", "The run has no tree.json: an older version sampled it.")
    body = (
        '<p id="path" class="legend"></p><div id="icicle"></div>'
        '<div id="node" class="node" aria-live="polite"></div>'
    )
    note = (
        "Each box is a segment of prompt tokens that all prompts below it share; its width is the "
        "number of completions. Point at a box for details, or click it to zoom in. Seconds are parts of the "
        "measured totals: prefill by prompt tokens, decoding by generated tokens."
    )
    return sections.section("Prompt tree", body, note)


def _document(title: str, subtitle: str, body: str) -> str:
    files = resources.files(__package__ or "")
    style = files.joinpath("page.css").read_text(encoding="utf-8")
    script = files.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - treeshare report</title><style>{style}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header><main>{body}</main>"
        f"<script>{script}</script></body></html>\n"
    )
