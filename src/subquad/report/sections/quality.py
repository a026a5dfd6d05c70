"""Quality against speed: the score over how fast a mechanism trains and answers, memory as area.

The bubbles of Tay et al. (2020, "Long Range Arena", figure 3), with intervals and Pareto fronts. Rows that
differ in one knob are joined, and have the score over memory, too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from subquad.report import formats
from subquad.report.figures.figure import Axis, Disc, Figure, Line, Mark, Panel, Whisker, sign, ticks
from subquad.report.figures.html import figure_html
from subquad.report.figures.names import level_marks, names
from subquad.report.findings import Findings
from subquad.report.leaderboard import REFERENCE, BoardRow, Costs, near_baselines
from subquad.report.markup import Markup
from subquad.report.question import Question
from subquad.report.section import Section
from subquad.report.statistics import Interval, Summary
from subquad.report.styles import Style
from subquad.report.sweeps import Sweep, sweeps
from subquad.report.table import Table

LARGEST = 23  # pixels from the middle of the disc of the row with the most memory
MARGIN = 0.12  # of the height, above and below what is drawn


class Measured(NamedTuple):
    """A mechanism that has both, a score and what it costs."""

    label: str
    score: Summary
    costs: Costs
    whisker: Interval | None


class Point(NamedTuple):
    row: Measured
    x: float  # its speed
    words: str


def quality_content(findings: Findings) -> Markup | None:
    figure = quality_against_speed(findings.rows, findings.styles, findings.question)
    return figure_html(figure) if figure else None


def quality_against_speed(
    rows: Sequence[BoardRow], styles: Mapping[str, Style], question: Question
) -> Figure | None:
    """Panels for training and for use, and of knobs for memory; None where no row has a score and a speed."""
    metric, higher, speed = question.metric.label, question.metric.higher_is_better, f"{question.units}/s"
    shown = _measured(rows, higher=higher)
    training = _points([(row, row.costs.units_per_second) for row in shown], metric, speed)
    use = _points([(row, row.costs.latency_ms) for row in shown], metric, "ms")
    knobs = sweeps([row for row in rows if row.label in {each.label for each in shown}])
    memory = _points([(row, row.costs.training_peak_mb) for row in shown], metric, "MB") if knobs else []

    def panel(title: str, x: str, points: Sequence[Point], *, better: int) -> Panel:
        return _panel(title, x, points, near_baselines(rows), styles, knobs, higher=higher, better=better)

    panels = []
    if training:
        x = f"{question.units} per second (faster →)"
        panels.append(panel(f"In training: {metric} over speed", x, training, better=1))
    if use:
        x = "milliseconds per sequence (← faster)"
        panels.append(panel(f"In use: {metric} over latency", x, use, better=-1))
    if memory:
        x = "MB of a training step (← less)"
        panels.append(panel(f"In training: {metric} over memory", x, memory, better=-1))
    if not panels:
        return None
    table = Table(
        caption=f"{metric} on the test split with its interval, speed and memory",
        columns=(
            "mechanism",
            metric,
            "low",
            "high",
            f"{speed} in training",
            "ms per sequence",
            "MB in training",
        ),
        rows=tuple(
            (
                row.label,
                row.score.mean,
                row.score.interval.low if row.score.interval else None,
                row.score.interval.high if row.score.interval else None,
                row.costs.units_per_second,
                row.costs.latency_ms,
                row.costs.training_peak_mb,
            )
            for row in shown
        ),
    )
    labels = {row.label for row in shown}
    return Figure(
        name="quality",
        caption=_caption(rows, shown, metric, knobs),
        panels=tuple(panels),
        legend=tuple((label, style) for label, style in styles.items() if label in labels),
        line=False,
        reference="Pareto front" if len(shown) > 1 else "",
        table=table,
        data=table,
    )


def _measured(rows: Sequence[BoardRow], *, higher: bool) -> list[Measured]:
    """With whiskers about all but the best: short of its level, a row is told apart from it."""
    measured, best = [], next((row for row in rows if row.kind == "mechanism" and row.score), None)
    for row in rows:
        if row.score is None or row.costs is None or best is None:
            continue
        difference, mean = row.against.get(best.label), row.score.mean
        whisker = None
        if difference:
            low, high = mean - difference.least, mean + difference.least
            whisker = Interval(low=max(0.0, low), high=min(1.0, high) if higher else high)
        measured.append(Measured(row.label, row.score, row.costs, whisker))
    return measured


def _caption(rows: Sequence[BoardRow], shown: Sequence[Measured], metric: str, knobs: Sequence[Sweep]) -> str:
    sentences = [f"{metric[:1].upper()}{metric[1:]} on the test split over speed."]
    if len(shown) > 1:
        sentences.append("No row is better in both than those on the grey front.")
    if knobs:
        turned = dict.fromkeys(f"{knob.mechanism} by {knob.knob}" for knob in knobs)
        sentences.append(f"A thin line joins rows that differ in one knob: {formats.listed(list(turned))}.")
    if any(row.whisker for row in shown):
        sentences.append("A row whose whisker stays short of the level of the best is told apart from it.")
    if memory := [row.costs.training_peak_mb for row in shown if row.costs.training_peak_mb]:
        low, high = formats.significant(min(memory)), formats.significant(max(memory))
        sentences.append(f"The area of a disc is the memory of a training step, from {low} to {high} MB.")
    if len({machine for row in shown for machine in row.costs.machines}) > 1:
        sentences.append("The speeds come from different machines and cannot be compared between them.")
    near = near_baselines(rows)
    if near:
        sentences.append("Dashed lines are baselines.")
    far = [
        f"{row.label} ({formats.score(row.score.mean)})"
        for row in rows
        if row.kind == "baseline" and row.score and row not in near
    ]
    if far:
        sentences.append(f"Off the picture: {formats.listed(far)}.")
    return " ".join(sentences)


def _points(speeds: Sequence[tuple[Measured, float | None]], metric: str, unit: str) -> list[Point]:
    """Those whose speed is known, with the words that appear beside them."""
    points = []
    for row, x in speeds:
        if not x:
            continue
        words = f"{row.label}: {metric} {formats.score(row.score.mean)}, {formats.significant(x)} {unit}"
        if memory := row.costs.training_peak_mb:
            words += f", {formats.significant(memory)} MB"
        points.append(Point(row, x, words))
    return points


def _panel(
    title: str,
    x_title: str,
    points: Sequence[Point],
    baselines: Sequence[BoardRow],
    styles: Mapping[str, Style],
    knobs: Sequence[Sweep],
    *,
    higher: bool,
    better: int,
) -> Panel:
    """`better`: 1 where more of x is, else -1."""
    levels = {baseline.label: baseline.score.mean for baseline in baselines if baseline.score}
    heights = [*levels.values(), *(point.row.score.mean for point in points)]
    heights += [end for point in points if (each := point.row.whisker) for end in (each.low, each.high)]
    low, high = min(heights), max(heights)
    margin = MARGIN * (high - low) or 0.05
    top = min(high + margin, max(1.0, high)) if higher else high + margin
    bottom, end = max(low - margin, min(0.0, low)), 1.12 * max(point.x for point in points)
    x = Axis(title=x_title, low=0, high=end, ticks=ticks(0, end, most=5))
    y = Axis(low=bottom, high=top, ticks=ticks(bottom, top))
    largest = max(point.row.costs.training_peak_mb or 0.0 for point in points)
    places = {point.row.label: (point.x, point.row.score.mean) for point in points}
    named = {f"baseline: {label}": height for label, height in levels.items()}
    drawn = level_marks(named, places, x, y)
    marks: list[Mark] = [*drawn]
    frontier = _frontier(points, higher=higher, better=better)
    if len(points) > 1:
        marks.append(_front([places[label] for label in frontier], x, y, higher=higher, better=better))
    marks += [_turned(knob, places) for knob in knobs]
    for point in points:
        marks += _point(point, styles[point.row.label], largest)
    marks += names(places, [label for label in (REFERENCE, *frontier) if label in places], drawn, x, y)
    sentences = [point.words for point in points]
    sentences.append(f"on the Pareto front: {', '.join(frontier)}")
    sentences += [f"baseline {label}: {formats.score(height)}" for label, height in levels.items()]
    return Panel(title=title, description=f"{title}. {'; '.join(sentences)}.", x=x, y=y, marks=tuple(marks))


def _front(best_first: Sequence[tuple[float, float]], x: Axis, y: Axis, *, higher: bool, better: int) -> Line:
    """Around all that some row beats in both, by corners, and on to the edges."""
    points = [(x.low if better > 0 else x.high, best_first[0][1])]
    for across, height in best_first:
        points += [(points[-1][0], height), (across, height)]
    points.append((points[-1][0], y.low if higher else y.high))
    words = "Pareto front: no row is better in both"
    return Line(row=None, points=tuple(points), colour="var(--grey)", width=6, opacity=0.45, words=words)


def _turned(knob: Sweep, places: Mapping[str, tuple[float, float]]) -> Line:
    values = ", ".join(formats.significant(value) for value in knob.values)
    return Line(
        row=None,
        points=tuple(places[label] for label in knob.labels if label in places),
        colour="var(--muted)",
        width=1.25,
        words=f"{knob.mechanism} by {knob.knob}: {values}",
    )


def _point(point: Point, style: Style, largest: float) -> list[Mark]:
    """A disc for the memory; on it the whisker, and the mechanism's own marker."""
    row, marks = point.row, []
    at = (point.x, row.score.mean)
    if row.costs.training_peak_mb:
        radius = LARGEST * math.sqrt(row.costs.training_peak_mb / largest)
        marks.append(Disc(row=row.label, at=at, radius=radius, colour=style.colour))
    if row.whisker:
        low, high = row.whisker.low, row.whisker.high
        marks.append(Whisker(row=row.label, at=at, low=low, high=high, colour=style.colour))
    return [*marks, sign(row.label, style, at, point.words)]


def _frontier(points: Sequence[Point], *, higher: bool, better: int) -> list[str]:
    """The rows that no other beats in both, from the best score on."""
    sign = 1 if higher else -1
    labels, furthest = [], -math.inf
    for point in sorted(points, key=lambda point: (-sign * point.row.score.mean, -better * point.x)):
        if better * point.x > furthest:
            labels.append(point.row.label)
            furthest = better * point.x
    return labels


QUALITY = Section(id="quality", title="Quality against speed", of=quality_content)
