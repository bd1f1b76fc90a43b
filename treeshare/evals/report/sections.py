"""The report's sections as HTML; all text from outside goes through ``escape``."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING

from treeshare.evals.report.charts import Axis, Line, line_chart, number_axis, reliability_diagram
from treeshare.evals.report.data import colour, verdict_counts
from treeshare.evals.sandbox import Verdict
from treeshare.evals.statistics.pass_at_k import table_ks
from treeshare.evals.summary import UNDECIDED_NOTE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from treeshare.evals.judged import JudgedRun
    from treeshare.evals.metrics import CalibrationRow
    from treeshare.evals.report.timeline import Timeline
    from treeshare.evals.statistics.pass_at_k import Estimate
    from treeshare.runs import Manifest

_RESCALINGS = {"platt": "Platt", "isotonic": "isotonic"}
_MAX_SHOWN = 400
_NO_VERDICTS = "No completion has been checked yet: run treeshare evaluate, then this command again."


def section(title: str, body: str, note: str = "") -> str:
    """A section with its heading; ``note`` is plain text below it."""
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    anchor = "".join(c if c.isalnum() else "-" for c in title.lower())
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{body}{below}</section>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text; the first column is left-aligned, the others are numbers."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def tiles(run: JudgedRun, curve: Mapping[int, Estimate], timeline: Timeline | None) -> str:
    """The figures at the top."""
    manifest, num_checked = run.manifest, sum(n for n, _ in run.counts().values())
    num_wanted = len(manifest.task_ids) * manifest.n
    found = []
    if 1 in curve:
        found.append(("pass@1", percent(curve[1].value), interval(curve[1])))
    if len(curve) > 1:
        last = max(curve)
        found.append((f"pass@{last:,}", percent(curve[last].value), interval(curve[last])))
    found.append(("problems", f"{len(manifest.task_ids):,}", f"{manifest.n:,} completions each"))
    made = "all made" if run.num_completions == num_wanted else f"of {num_wanted:,} wanted"
    found.append(("completions", f"{run.num_completions:,}", f"{made}, {num_checked:,} checked"))
    if timeline is not None:
        speed = f"{timeline.num_tokens / timeline.wall_s:,.0f}" if timeline.wall_s else "-"
        found.append(("tokens per second", speed, f"{timeline.num_tokens:,} in {seconds(timeline.wall_s)}"))
        peak = f"{timeline.peak_rss_bytes / 2**30:.2f} GiB"
        found.append(
            ("peak memory", peak, f"KV {max(v for _, v in timeline.kv_bytes) / 2**20:,.0f} MiB of it")
        )
    return (
        '<div class="tiles">'
        + "".join(
            f"<div><b>{escape(name)}</b><strong>{escape(value)}</strong><small>{escape(below)}</small></div>"
            for name, value, below in found
        )
        + "</div>"
    )


def pass_section(curve: Mapping[int, Estimate]) -> str:
    """pass@k with its band, as chart and table."""
    if not curve:
        return section("pass@k", "", _NO_VERDICTS)
    last = max(curve)
    ks = [1 << power for power in range(last.bit_length())]
    x = Axis(low=1, high=max(last, 2), ticks=[(k, f"{k:,}") for k in _few(ks, 9)], is_log=True)
    highest = max(
        estimate.interval[1] if estimate.interval else estimate.value for estimate in curve.values()
    )
    y = number_axis(min(max(highest, 0.01), 1.0), lambda value: f"{100 * value:g} %")
    titles = [f"pass@{k}: {percent(e.value)} {interval(e)}" for k, e in curve.items()]
    chart = line_chart(
        x,
        y,
        [Line(points=[(k, e.value) for k, e in curve.items()], name="pass@k", titles=titles)],
        band=[(k, *e.interval) for k, e in curve.items() if e.interval],
        label="pass@k against k",
        x_name="k (logarithmic)",
    )
    shown = {k: e for k, e in curve.items() if k in table_ks(last)}
    return section(
        "pass@k",
        f'<div class="pair">{chart}{estimates_table("k", "pass@k", shown)}</div>',
        "Unbiased; errors are over problems: s / sqrt(m), and 95 % BCa bootstrap intervals (the band). "
        "Where all problems agree no resample differs, and there is no interval.",
    )


def estimates_table(first: str, name: str, found: Mapping[int, Estimate]) -> str:
    """Estimates with their errors."""
    rows = [
        (
            f"{k:,}",
            percent(e.value),
            "-" if e.standard_error is None else percent(e.standard_error),
            interval(e),
        )
        for k, e in found.items()
    ]
    return table((first, name, "standard error", "95 % interval"), rows)


def choice_sections(majority: Mapping[int, Estimate], filtered: Mapping[int, Estimate]) -> str:
    """majority@k and filtered n@k, where the task has them."""
    parts = []
    if majority:
        parts.append(
            section(
                "majority@k",
                estimates_table("k", "majority@k", majority),
                "The answer that most of k completions give, over all draws of k; tied answers have equal "
                "chances, completions without an answer do not vote.",
            )
        )
    if filtered:
        parts.append(
            section(
                "n@k, filtered and clustered",
                estimates_table("submissions", "solved", filtered),
                "All completions are filtered by the public tests and clustered by behaviour; submissions "
                "come from the largest clusters.",
            )
        )
    return "".join(parts)


def verdict_section(run: JudgedRun) -> str:
    """How completions ended."""
    counts = verdict_counts(completion for completions in run.problems.values() for completion in completions)
    if not counts:
        return section("Verdicts", "", "There are no completions yet.")
    total = sum(counts.values())
    bars = "".join(
        f'<span class="v {colour(verdict)}" style="flex-grow:{count}" '
        f'title="{escape(verdict)}: {count:,}"></span>'
        for verdict, count in counts.items()
    )
    rows = "".join(
        f'<tr><td><span class="chip {colour(verdict)}">{escape(verdict)}</span></td><td>{count:,}</td>'
        f"<td>{percent(count / total)}</td></tr>"
        for verdict, count in counts.items()
    )
    body = (
        f'<div class="stack">{bars}</div><div class="wide"><table><thead><tr><th>verdict</th>'
        f"<th>completions</th><th>share</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
    return section("Verdicts", body, UNDECIDED_NOTE if Verdict.UNDECIDED in counts else "")


def calibration_section(rows: Sequence[CalibrationRow], notes: Sequence[str]) -> str:
    """Reliability diagrams and scores."""
    diagrams = "".join(
        f"<figure>{reliability_diagram(row.calibration, 'Reliability: ' + _name(row))}"
        f"<figcaption>{escape(_name(row))}</figcaption></figure>"
        for row in rows
    )
    scores = [
        (
            _name(row),
            f"{row.calibration.ece:.3f}",
            f"{row.calibration.brier:.3f}",
            "undefined" if row.calibration.skill_score is None else f"{row.calibration.skill_score:+.3f}",
        )
        for row in rows
    ]
    body = f'<div class="many">{diagrams}</div>'
    if rows:
        body += table(("confidence", "ECE", "Brier", "skill score"), scores)
    text = (
        "Bars show the share of right completions; dots show it at their mean confidence, with 95 % Wilson "
        "intervals; the bars below count completions. Confidence is the geometric mean of the tokens' "
        "probabilities, their product, or the geometric mean of the least likely tenth (tail). Rescaled "
        "values come from cross-validation over problems. Skill is relative to always giving the base rate. "
    )
    return section("Calibration", body, (text if rows else "") + " ".join(notes))


def time_section(timeline: Timeline | None) -> str:
    """Speed and memory over time."""
    if timeline is None:
        return section("Speed and memory", "", "The run has no stats.jsonl with generated tokens.")
    x = number_axis(timeline.wall_s, "{:g}".format)
    fastest = max((rate for _, rate in timeline.speed), default=0.0)
    speed = line_chart(
        x,
        number_axis(max(fastest, 1.0), "{:,.0f}".format),
        [Line(points=timeline.speed, name="tokens per second")],
        marks=timeline.starts,
        label="Generated tokens per second over time",
        x_name="seconds; generated tokens per second",
    )
    mib = 2.0**20
    memory = line_chart(
        x,
        number_axis(max(timeline.peak_rss_bytes / mib, 1.0), "{:,.0f}".format),
        [
            Line(points=[(t, v / mib) for t, v in timeline.rss_bytes], name="memory of the process"),
            Line(points=[(t, v / mib) for t, v in timeline.kv_bytes], name="peak KV so far", style="two"),
        ],
        marks=timeline.starts,
        label="Memory over time",
        x_name="seconds; MiB",
    )
    totals = [
        ("prefill", seconds(timeline.prefill_s)),
        ("decoding", seconds(timeline.decode_s)),
        ("sampling", seconds(timeline.sampling_s)),
        ("wall clock", seconds(timeline.wall_s)),
    ]
    note = "Vertical lines: where the run was resumed." if timeline.starts else ""
    charts = f'<div class="pair"><div>{speed}</div><div>{memory}</div></div>'
    return section("Speed and memory", charts + table(("of all sessions", "time"), totals), note)


def manifest_section(manifest: Manifest) -> str:
    """What the run was made with."""
    rows = []
    for name, value in manifest.model_dump().items():
        if name in ("sampling", "versions"):
            rows += [
                (f"{name}: {key}", json.dumps(inner, ensure_ascii=False)) for key, inner in value.items()
            ]
        else:
            rows.append((name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    shortened = [
        (name, text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + " ...") for name, text in rows
    ]
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in shortened)
    return section("Manifest", f"<dl>{cells}</dl>")


def percent(value: float) -> str:
    """A share as text."""
    return f"{100 * value:.1f} %"


def interval(estimate: Estimate) -> str:
    """An interval as text."""
    if estimate.interval is None:
        return "no interval"
    return f"{100 * estimate.interval[0]:.1f} to {100 * estimate.interval[1]:.1f} %"


def seconds(value: float) -> str:
    """A time as text."""
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _name(row: CalibrationRow) -> str:
    return row.confidence if row.rescaling is None else f"{row.confidence}, {_RESCALINGS[row.rescaling]}"


def _few(values: Sequence[int], max_values: int) -> Sequence[int]:
    return values[:: -(-len(values) // max_values)]
