"""Learning curves: training loss and validation metric over the examples seen."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from subquad.report import formats
from subquad.report.budgets import Budgets
from subquad.report.figures.figure import Axis, Figure, Mark, Panel, Point, line, sign, ticks
from subquad.report.figures.html import figure_html
from subquad.report.findings import Findings
from subquad.report.learning import LearningCurve, LearningPoint
from subquad.report.markup import Markup, element, join
from subquad.report.question import Question
from subquad.report.section import Section
from subquad.report.styles import Style
from subquad.report.table import Table

SMOOTH = 30  # points of a curve to each point of the window of its running mean


Curves = Mapping[str, Sequence[LearningCurve]]  # by mechanism
Value = Callable[[LearningPoint], float | None]


def learning_content(findings: Findings) -> Markup | None:
    figure = learning_figure(findings.learning, findings.styles, findings.question.metric.label)
    if not figure:
        return None
    table = _budgets(findings.budgets, findings.question) if findings.budgets else Markup()
    return join((figure_html(figure), table))


def _budgets(budgets: Budgets, question: Question) -> Markup:
    """What is reached within parts of the budget, and when runs take off."""
    metric, known = question.metric.label, any(row.takes_off for row in budgets.rows)
    text = f"{metric[:1].upper()}{metric[1:]} on validation, the mean over the seeds, after so many examples."
    if known:
        text += " A run takes off where it is above the majority by more than other examples would explain."
    table = Table(
        caption=f"Validation {metric} by examples seen; the last is the whole budget",
        columns=(
            "mechanism",
            *(_seen(examples, question) for examples in budgets.examples),
            *(["takes off"] if known else []),
        ),
        rows=tuple(
            (
                row.label,
                *(fmean(scores) if scores else None for scores in row.scores),
                *([_takes_off(row.takes_off)] if known else []),
            )
            for row in budgets.rows
        ),
    )
    return join((element("h3", "By budget"), element("p", text), table.html()))


def _seen(examples: int, question: Question) -> str:
    """So many examples, and so many epochs where that is known."""
    epochs = question.train_epochs(examples)
    also = "" if epochs is None else f" ({formats.significant(epochs, digits=2)} epochs)"
    return f"{examples:,}{also}"


def _takes_off(seeds: Sequence[int | None]) -> str:
    off = sorted(examples for examples in seeds if examples is not None)
    if not off:
        return "not within this budget" if seeds else "not known"
    when = f"{off[0]:,}" if off[0] == off[-1] else f"{off[0]:,} to {off[-1]:,}"
    return f"at {when} examples" if len(off) == len(seeds) else f"{len(off)} of {len(seeds)} seeds, at {when}"


def learning_figure(curves: Curves, styles: Mapping[str, Style], metric: str) -> Figure | None:
    """Two panels, training loss and validation metric: each seed thin, their mean bold."""
    if not curves:
        return None
    longest = max(len(curve.points) for seeds in curves.values() for curve in seeds)
    window = max(1, longest // SMOOTH)
    rows = tuple(
        (label, curve.seed, point.step, point.examples, point.loss, point.validation)
        for label, seeds in curves.items()
        for curve in seeds
        for point in curve.points
    )
    columns = ("mechanism", "seed", "step", "examples seen", "training loss", f"validation {metric}")
    caption = ["Over the examples seen, the same budget for all."]
    smoothed = f", and of {window} points about it" if window > 1 else ""
    caption.append(f"A point of the training loss is the mean since the point before{smoothed}.")
    if any(len(seeds) > 1 for seeds in curves.values()):
        caption.append("Thin lines are seeds, bold ones their mean.")
    caption.append("Runs that failed have no curve.")
    return Figure(
        name="learning",
        caption=" ".join(caption),
        panels=(
            _panel("Training loss", curves, styles, lambda point: point.loss, window=window, marks=False),
            _panel(
                f"Validation {metric}", curves, styles, lambda point: point.validation, window=1, marks=True
            ),
        ),
        legend=tuple((label, styles[label]) for label in curves),
        line=True,
        table=Table(
            caption="Where validation was measured; the download has every point",
            columns=columns,
            rows=tuple(row for row in rows if row[-1] is not None),
        ),
        data=Table(caption="Learning curves", columns=columns, rows=rows),
    )


def _panel(
    title: str, curves: Curves, styles: Mapping[str, Style], value: Value, *, window: int, marks: bool
) -> Panel:
    drawn: list[Mark] = []
    sentences, heights, end = [], [], 1.0
    for label, seeds in curves.items():
        style, lines = styles[label], [_line(curve, value, window) for curve in seeds]
        heights += [y for points in lines for _, y in points]
        end = max([end, *(x for points in lines for x, _ in points)])
        bold, what = lines, [f"seed {curve.seed}" for curve in seeds]
        if len(lines) > 1 and all(_places(points) == _places(lines[0]) for points in lines):
            drawn += [line(label, style, points, thin=True) for points in lines if points]
            bold, what = [_mean(lines)], ["mean of seeds"]
        for name, points in zip(what, bold, strict=True):
            if not points:
                continue
            course = f"from {formats.score(points[0][1])} to {formats.score(points[-1][1])}"
            drawn.append(line(label, style, points, words=f"{label}, {name}: {course}"))
            sentences.append(f"{label}: {course}")
            if marks:
                drawn += [
                    sign(label, style, (x, y), f"{label}, {name}: {formats.score(y)} after {x:,.0f} examples")
                    for x, y in points
                ]
    low, high = (min(heights), max(heights)) if heights else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.05
    low, high, end = low - margin, high + margin, 1.03 * end
    return Panel(
        title=title,
        description=f"{title}. {'; '.join(sentences)}.",
        x=Axis(title="examples seen", low=0, high=end, ticks=ticks(0, end, most=5)),
        y=Axis(low=low, high=high, ticks=ticks(low, high)),
        marks=tuple(drawn),
    )


def _line(curve: LearningCurve, value: Value, window: int) -> list[Point]:
    points = [(point.examples, y) for point in curve.points if (y := value(point)) is not None]
    return list(zip(_places(points), running_mean([y for _, y in points], window), strict=True))


def _mean(lines: Sequence[Sequence[Point]]) -> list[Point]:
    return [(points[0][0], fmean(y for _, y in points)) for points in zip(*lines, strict=True)]


def _places(points: Sequence[Point]) -> list[float]:
    return [x for x, _ in points]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the `window` values about each, fewer at the ends."""
    before, after = (window - 1) // 2, window // 2
    return [fmean(values[max(0, i - before) : i + after + 1]) for i in range(len(values))]


LEARNING = Section(id="learning", title="Learning curves", of=learning_content)
