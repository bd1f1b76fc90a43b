"""Charts as SVG text: small, without scripts, in the page's own colours.

plotly would draw them too, and its script alone is several megabytes in each report; these take a few
kilobytes. All text is escaped here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from treeshare.evals.statistics.calibration import Calibration

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A scale.

    Attributes:
        low: Value at its beginning.
        high: Value at its end, above ``low``.
        ticks: Values with a mark, and their text.
        is_log: Whether it is logarithmic.
    """

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where on the axis, from 0 to 1."""
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return (value - low) / (high - low)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series.

    Attributes:
        points: x and y values.
        name: For the legend.
        style: A class of the style sheet: ``one``, ``two`` or ``three``.
        titles: What a point says when pointed at; none draws no points.
    """

    points: Sequence[Point]
    name: str
    style: str = "one"
    titles: Sequence[str] = ()


def number_axis(high: float, text: Callable[[float], str] = "{:g}".format, *, num_ticks: int = 5) -> Axis:
    """An axis from 0 to a round number not below ``high``."""
    step = 10.0 ** math.floor(math.log10(max(high, 1e-9) / num_ticks))
    step = next(step * factor for factor in (1, 2, 5, 10) if step * factor * num_ticks >= high * (1 - 1e-9))
    count = max(math.ceil(high / step - 1e-9), 1)
    ticks = [(i * step, text(i * step)) for i in range(count + 1)]
    return Axis(low=0.0, high=count * step, ticks=ticks)


def line_chart(
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    *,
    label: str,
    x_name: str,
    band: Sequence[tuple[float, float, float]] = (),
    marks: Sequence[float] = (),
    size: tuple[int, int] = (440, 260),
) -> str:
    """A chart of lines.

    Args:
        x: Horizontal axis.
        y: Vertical axis.
        lines: What to draw.
        label: What it shows, for those who cannot see it.
        x_name: Written below.
        band: ``(x, low, high)`` of a filled band.
        marks: x values of vertical lines.
        size: Width and height in SVG units.
    """
    width, height = size
    left, right, top, bottom = 46, width - 12, 10, height - 38

    def at(point: Point) -> str:
        across, up = (right - left) * x.place(point[0]), (bottom - top) * y.place(point[1])
        return f"{left + across:.1f},{bottom - up:.1f}"

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">']
    for value, text in y.ticks:
        _, y_at = at((x.low, value)).split(",")
        parts.append(f'<path class="grid" d="M{left},{y_at}H{right}"/>')
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{y_at}" dy="4" text-anchor="end">{escape(text)}</text>'
        )
    for value, text in x.ticks:
        x_at, _ = at((value, y.low)).split(",")
        parts.append(f'<path class="grid" d="M{x_at},{bottom}v4"/>')
        parts.append(
            f'<text class="tick" x="{x_at}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>'
        )
    parts.append(
        f'<text class="tick" x="{(left + right) / 2}" y="{height - 4}" text-anchor="middle">'
        f"{escape(x_name)}</text>"
    )
    for value in marks:
        x_at, _ = at((value, y.low)).split(",")
        parts.append(f'<path class="mark" d="M{x_at},{top}V{bottom}"/>')
    if band:
        outline = [at((a, high)) for a, _, high in band] + [at((a, low)) for a, low, _ in reversed(band)]
        parts.append(f'<polygon class="band" points="{" ".join(outline)}"/>')
    for line in lines:
        parts.append(
            f'<polyline class="line {escape(line.style)}" points="{" ".join(map(at, line.points))}"/>'
        )
        for point, title in zip(line.points, line.titles, strict=False):
            cx, cy = at(point).split(",")
            parts.append(
                f'<circle class="dot {escape(line.style)}" cx="{cx}" cy="{cy}" r="3">'
                f"<title>{escape(title)}</title></circle>"
            )
    parts.append("</svg>")
    return "".join(parts) + _legend(lines)


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    keys = "".join(
        f'<span><i class="key {escape(line.style)}"></i>{escape(line.name)}</span>' for line in lines
    )
    return f'<p class="legend">{keys}</p>'


def reliability_diagram(calibration: Calibration, label: str) -> str:
    """Accuracy against confidence: bars with intervals, and below them how many completions there are."""
    size, left, bottom, top = 200, 30, 150, 8
    span = size - left - 8

    def across(value: float) -> float:
        return left + span * value

    def up(value: float) -> float:
        return bottom - (bottom - top) * value

    parts = [f'<svg class="chart" viewBox="0 0 {size} 200" role="img" aria-label="{escape(label)}">']
    for tick in (0.0, 0.5, 1.0):
        parts.append(f'<path class="grid" d="M{left},{up(tick)}H{across(1)}"/>')
        parts.append(
            f'<text class="tick" x="{left - 5}" y="{up(tick) + 4}" text-anchor="end">{tick:g}</text>'
        )
        parts.append(f'<text class="tick" x="{across(tick)}" y="198" text-anchor="middle">{tick:g}</text>')
    max_count = max(group.count for group in calibration.bins)
    for group in calibration.bins:
        if group.accuracy is None or group.interval is None or group.confidence is None:
            continue
        low, high = group.interval
        x, width = across(group.low) + 0.5, span * (group.high - group.low) - 1
        title = (
            f"confidence {group.low:.1f} to {group.high:.1f}: {group.count} completions, mean confidence "
            f"{group.confidence:.3f}, right {group.accuracy:.3f} ({low:.3f} to {high:.3f})"
        )
        middle = across(group.confidence)
        parts.append(
            f"<g><title>{escape(title)}</title>"
            f'<rect class="bar" x="{x:.1f}" y="{up(group.accuracy):.1f}" width="{width:.1f}" '
            f'height="{bottom - up(group.accuracy):.1f}"/>'
            f'<path class="whisker" d="M{middle:.1f},{up(low):.1f}V{up(high):.1f}"/>'
            f'<circle class="dot one" cx="{middle:.1f}" cy="{up(group.accuracy):.1f}" r="2.5"/>'
            f'<rect class="count" x="{x:.1f}" y="{bottom + 4}" width="{width:.1f}" '
            f'height="{max(30 * group.count / max_count, 0.5):.1f}"/></g>'
        )
    parts.append(f'<path class="ideal" d="M{across(0)},{up(0)}L{across(1)},{up(1)}"/></svg>')
    return "".join(parts)
