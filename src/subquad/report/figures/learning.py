"""Learning curves: training loss and validation metric over the examples seen."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from subquad.records import Record
from subquad.report import units
from subquad.report.figures.figure import Figure, Json, Panel, axes, line
from subquad.report.leaderboard import identity
from subquad.report.looks import Look
from subquad.report.table import Table

SMOOTH = 30  # points of a curve to each point of the window of its running mean


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
    data, said = [], []
    for label, seeds in courses.items():
        lines = {course.seed: _line(course, read, window) for course in seeds}
        bold = {f"seed {seed}": drawn for seed, drawn in lines.items()}
        places = [xs for xs, _ in lines.values()]
        if len(lines) > 1 and all(xs == places[0] for xs in places):
            means = [fmean(values) for values in zip(*(ys for _, ys in lines.values()), strict=True)]
            data += [line(label, looks[label], *drawn, what=name, thin=True) for name, drawn in bold.items()]
            bold = {"mean of seeds": (places[0], means)}
        for name, (xs, ys) in bold.items():
            data.append(line(label, looks[label], xs, ys, what=name, marks=marks))
            if ys:
                said.append(f"{label}: from {units.score(ys[0])} to {units.score(ys[-1])}")
    heights = [y for trace in data for y in trace["y"]] or [0.0]
    end = max((x for trace in data for x in trace["x"]), default=1)
    layout = axes(x="examples seen")
    layout["xaxis"] |= {"range": [0, 1.03 * end], "tickformat": ",~g"}
    layout["yaxis"] |= {"tickformat": units.ticks(min(heights), max(heights))}
    return Panel(title=title, description=f"{title}. {'; '.join(said)}.", data=data, layout=layout)


def _line(course: Course, read: Read, window: int) -> tuple[list[float], list[float]]:
    kept = [(point["examples"], y) for point in course.points if (y := read(point)) is not None]
    return [x for x, _ in kept], running_mean([y for _, y in kept], window)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the `window` values about each, fewer at the ends."""
    before, after = (window - 1) // 2, window // 2
    return [fmean(values[max(0, i - before) : i + after + 1]) for i in range(len(values))]
