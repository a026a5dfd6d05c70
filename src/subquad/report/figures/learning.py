"""Learning curves: training loss and validation metric over the examples seen."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from subquad.records import Record
from subquad.report import units
from subquad.report.figures.figure import Axis, Figure, Mark, Panel, Point, line, sign, ticks
from subquad.report.leaderboard import identity
from subquad.report.looks import Look
from subquad.report.table import Table

SMOOTH = 30  # points of a curve to each point of the window of its running mean


Json = dict[str, Any]


class Course(NamedTuple):
    """How the training of one seed went."""

    seed: int
    points: list[Json]  # "step", "examples", "loss", and some have "validation"


Courses = Mapping[str, Sequence[Course]]  # by mechanism
Read = Callable[[Json], float | None]


def learning(
    comparison: Mapping[str, Any], records: Sequence[Record], looks: Mapping[str, Look]
) -> Figure | None:
    """Two panels, training loss and validation metric: each seed thin, their mean bold."""
    courses = _courses(comparison, records)
    if not courses:
        return None
    name = units.metric(comparison["metric"])
    longest = max(len(course.points) for seeds in courses.values() for course in seeds)
    window = max(1, longest // SMOOTH)

    def loss(point: Json) -> float:
        return point["loss"]

    def validation(point: Json) -> float | None:
        return point.get("validation", {}).get(comparison["metric"])

    rows = tuple(
        (label, course.seed, point["step"], point["examples"], point["loss"], validation(point))
        for label, seeds in courses.items()
        for course in seeds
        for point in course.points
    )
    columns = ("mechanism", "seed", "step", "examples seen", "training loss", f"validation {name}")
    said = ["Over the examples seen, the same budget for all."]
    smoothed = f", and of {window} points about it" if window > 1 else ""
    said.append(f"A point of the training loss is the mean since the point before{smoothed}.")
    if any(len(seeds) > 1 for seeds in courses.values()):
        said.append("Thin lines are seeds, bold ones their mean.")
    said.append("Runs that failed have no curve.")
    return Figure(
        name="learning",
        caption=" ".join(said),
        panels=(
            _panel("Training loss", courses, looks, loss, window=window, marks=False),
            _panel(f"Validation {name}", courses, looks, validation, window=1, marks=True),
        ),
        legend=tuple((label, looks[label]) for label in courses),
        line=True,
        table=Table(
            caption="Where validation was measured; the download has every point",
            columns=columns,
            rows=tuple(row for row in rows if row[-1] is not None),
        ),
        data=Table(caption="Learning curves", columns=columns, rows=rows),
    )


def _courses(comparison: Mapping[str, Any], records: Sequence[Record]) -> Courses:
    """The courses of the fits that went well, by mechanism, in the order asked."""
    courses: dict[str, list[Course]] = {}
    for asked in comparison["rows"]:
        for record in records:
            if record["kind"] != "fit" or identity(record["spec"]) != identity(asked):
                continue
            if points := record["result"].get("curve"):
                courses.setdefault(asked["label"], []).append(Course(record["spec"]["seed"], points))
    return courses


def _panel(
    title: str, courses: Courses, looks: Mapping[str, Look], read: Read, *, window: int, marks: bool
) -> Panel:
    drawn: list[Mark] = []
    said, heights, end = [], [], 1.0
    for label, seeds in courses.items():
        look, lines = looks[label], [_line(course, read, window) for course in seeds]
        heights += [y for points in lines for _, y in points]
        end = max([end, *(x for points in lines for x, _ in points)])
        bold, what = lines, [f"seed {course.seed}" for course in seeds]
        if len(lines) > 1 and all(_places(points) == _places(lines[0]) for points in lines):
            drawn += [line(label, look, points, thin=True) for points in lines if points]
            bold, what = [_mean(lines)], ["mean of seeds"]
        for name, points in zip(what, bold, strict=True):
            if not points:
                continue
            course = f"from {units.score(points[0][1])} to {units.score(points[-1][1])}"
            drawn.append(line(label, look, points, words=f"{label}, {name}: {course}"))
            said.append(f"{label}: {course}")
            if marks:
                drawn += [
                    sign(label, look, (x, y), f"{label}, {name}: {units.score(y)} after {x:,.0f} examples")
                    for x, y in points
                ]
    low, high = (min(heights), max(heights)) if heights else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.05
    low, high, end = low - margin, high + margin, 1.03 * end
    return Panel(
        title=title,
        description=f"{title}. {'; '.join(said)}.",
        x=Axis(title="examples seen", low=0, high=end, ticks=ticks(0, end, most=5)),
        y=Axis(low=low, high=high, ticks=ticks(low, high)),
        marks=tuple(drawn),
    )


def _line(course: Course, read: Read, window: int) -> list[Point]:
    kept = [(point["examples"], y) for point in course.points if (y := read(point)) is not None]
    return list(zip(_places(kept), running_mean([y for _, y in kept], window), strict=True))


def _mean(lines: Sequence[Sequence[Point]]) -> list[Point]:
    return [(points[0][0], fmean(y for _, y in points)) for points in zip(*lines, strict=True)]


def _places(points: Sequence[Point]) -> list[float]:
    return [x for x, _ in points]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the `window` values about each, fewer at the ends."""
    before, after = (window - 1) // 2, window // 2
    return [fmean(values[max(0, i - before) : i + after + 1]) for i in range(len(values))]
