"""Quality against speed: the score over how fast a mechanism trains and answers, memory as area."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from subquad.report import units
from subquad.report.figures.figure import Figure, Json, Panel, axes, plain
from subquad.report.leaderboard import Costs, Row, extent, near_floors
from subquad.report.looks import Look
from subquad.report.statistics import Summary
from subquad.report.table import Table

LARGEST = 46  # pixels across: the disc of the row with the most memory
MARGIN = 0.12  # of the height, above and below what is drawn


class Measured(NamedTuple):
    """A mechanism that has both, a score and what it costs."""

    label: str
    score: Summary
    costs: Costs


class Point(NamedTuple):
    label: str
    score: Summary
    x: float  # its speed
    memory: float | None
    words: str


def quality_against_speed(
    rows: Sequence[Row], looks: Mapping[str, Look], comparison: Mapping[str, Any]
) -> Figure | None:
    """Two panels, for training and for use; None where no row has a score and a speed."""
    shown = [Measured(row.label, row.score, row.costs) for row in rows if row.score and row.costs]
    metric = units.metric(comparison["metric"])
    floors = {row.label: row.score for row in near_floors(rows) if row.score}
    training = _points([(row, row.costs.events_per_second) for row in shown], metric, "events/s")
    use = _points([(row, row.costs.latency_ms) for row in shown], metric, "ms")
    panels = []
    if training:
        layout = axes(x="events per second (faster →)")
        panels.append(_panel(f"In training: {metric} over speed", training, floors, looks, layout))
    if use:
        layout = axes(x="milliseconds per history (← faster)")
        panels.append(_panel(f"In use: {metric} over latency", use, floors, looks, layout))
    if not panels:
        return None
    table = Table(
        caption=f"{metric} on the test split with its interval, speed and memory",
        columns=(
            "mechanism",
            metric,
            "low",
            "high",
            "events/s in training",
            "ms per history",
            "MB in training",
        ),
        rows=tuple(
            (
                row.label,
                row.score.mean,
                row.score.interval.low if row.score.interval else None,
                row.score.interval.high if row.score.interval else None,
                row.costs.events_per_second,
                row.costs.latency_ms,
                row.costs.training_peak_mb,
            )
            for row in shown
        ),
    )
    labels = {row.label for row in shown}
    return Figure(
        name="quality",
        caption=_caption(rows, shown, metric),
        panels=tuple(panels),
        legend=tuple((label, look) for label, look in looks.items() if label in labels),
        line=False,
        table=table,
        data=table,
    )


def _caption(rows: Sequence[Row], shown: Sequence[Measured], metric: str) -> str:
    said = [f"{metric} on the test split over speed."]
    if any(row.score.interval for row in shown):
        said.append("Whiskers are 95 % intervals over the seeds.")
    if memory := [row.costs.training_peak_mb for row in shown if row.costs.training_peak_mb]:
        low, high = units.significant(min(memory)), units.significant(max(memory))
        said.append(f"The area of a disc is the memory of a training step, from {low} to {high} MB.")
    if len({machine for row in shown for machine in row.costs.machines}) > 1:
        said.append("The speeds come from different machines and cannot be compared between them.")
    near = near_floors(rows)
    if near:
        said.append("Dashed lines are floors.")
    far = [
        f"{row.label} ({units.score(row.score.mean)})"
        for row in rows
        if row.kind == "floor" and row.score and row not in near
    ]
    if far:
        said.append(f"Off the picture: {units.listed(far)}.")
    return " ".join(said)


def _points(speeds: Sequence[tuple[Measured, float | None]], metric: str, unit: str) -> list[Point]:
    """Those whose speed is known, with the words that appear beside them."""
    points = []
    for row, x in speeds:
        if not x:
            continue
        memory = row.costs.training_peak_mb
        words = f"{metric} {units.score(row.score.mean)}, {units.significant(x)} {unit}"
        if memory:
            words += f", {units.significant(memory)} MB"
        points.append(Point(row.label, row.score, x, memory, words))
    return points


def _panel(
    title: str,
    points: Sequence[Point],
    floors: Mapping[str, Summary],
    looks: Mapping[str, Look],
    layout: Json,
) -> Panel:
    heights = [y for score in (*floors.values(), *(point.score for point in points)) for y in extent(score)]
    low, high = min(heights), max(heights)
    margin = MARGIN * (high - low) or 0.05
    largest = max(point.memory or 0.0 for point in points)
    layout["xaxis"] |= {"range": [0, 1.12 * max(point.x for point in points)], "tickformat": ",~g"}
    layout["yaxis"] |= {"range": [low - margin, high + margin], "tickformat": units.ticks(low, high)}
    layout["shapes"] = [_floor_line(score.mean) for score in floors.values()]
    layout["annotations"] = [
        _floor_name(label, score.mean, points, near=0.15 * (high - low)) for label, score in floors.items()
    ]
    said = [f"{point.label}: {point.words}" for point in points]
    said += [f"floor {label}: {units.score(score.mean)}" for label, score in floors.items()]
    return Panel(
        title=title,
        description=f"{title}. {'; '.join(said)}.",
        data=[trace for point in points for trace in _disc(point, looks[point.label], largest)],
        layout=layout,
    )


def _disc(point: Point, look: Look, largest: float) -> list[Json]:
    """A disc for the memory; on it the mechanism's own marker with the whiskers of its score."""
    mean, interval = point.score.mean, point.score.interval
    place = {"type": "scatter", "mode": "markers", "x": [point.x], "y": [mean]}
    common: Json = {**place, "name": plain(point.label), "meta": point.label}
    marker: Json = {
        **common,
        "text": [f"<b>{plain(point.label)}</b><br>{plain(point.words)}"],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": look.colour, "symbol": look.marker, "size": 9},
    }
    if interval:
        marker["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [interval.high - mean],
            "arrayminus": [mean - interval.low],
            "color": look.colour,
            "thickness": 1.5,
            "width": 5,
        }
    if not point.memory:
        return [marker]
    size = LARGEST * math.sqrt(point.memory / largest)
    filled = {"color": look.colour, "size": size, "opacity": 0.25}
    return [{**common, "hoverinfo": "skip", "cliponaxis": False, "marker": filled}, marker]


def _floor_line(height: float) -> Json:
    line = {"color": "var(--floor)", "width": 1.5, "dash": "dash"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height, "line": line}


def _floor_name(label: str, height: float, points: Sequence[Point], *, near: float) -> Json:
    """On its line: at the left, or at the right where a point on the left is in the way."""
    middle = max(point.x for point in points) / 2
    right = any(-near < point.score.mean - height < 2 * near for point in points if point.x < middle)
    return {
        "text": plain(f"floor: {label}"),
        "xref": "paper",
        "x": 0.99 if right else 0.01,
        "y": height,
        "xanchor": "right" if right else "left",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 12, "color": "var(--muted)"},
    }
