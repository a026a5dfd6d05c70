"""By parts: the score over each kind of answers, as a line where kinds are numbers in order."""

from collections.abc import Iterator, Mapping, Sequence

from subquad.report import formats
from subquad.report.figures.figure import Axis, Figure, Line, Mark, Panel, line, sign, ticks
from subquad.report.figures.html import figure_html
from subquad.report.findings import Findings
from subquad.report.markup import Markup
from subquad.report.parts import PartScores
from subquad.report.section import Section
from subquad.report.styles import Style
from subquad.report.table import Table

LETTERS = 46  # of names for which there is room below a panel
MOST_NAMES = 6
SPREAD = 0.7  # of a part's width, over which the mechanisms stand side by side


def parts_content(findings: Findings) -> Markup | None:
    figure = parts_figure(findings.parts, findings.styles, findings.question.metric.label)
    return figure_html(figure) if figure else None


def parts_figure(by: Sequence[PartScores], styles: Mapping[str, Style], metric: str) -> Figure | None:
    """A panel for each thing in which answers differ; None where no run has parts."""
    shown = [row for row in styles if any(row in each.scores for each in by)]
    if not shown:
        return None
    baseline = next((each.baseline for each in by if each.baseline), None)
    table = _table(by, metric)
    return Figure(
        name="parts",
        caption=_caption(by, metric),
        panels=tuple(_panel(each, styles, metric) for each in by),
        legend=tuple((label, styles[label]) for label in shown),
        line=any(each.numbers for each in by),
        reference=f"baseline: {baseline}" if baseline else "",
        table=table,
        data=table,
    )


def _caption(by: Sequence[PartScores], metric: str) -> str:
    sentences = [f"{metric[:1].upper()}{metric[1:]} over each part of the test split by itself."]
    if any(len(seeds) > 1 for each in by for scores in each.scores.values() for seeds in scores):
        sentences.append("A mark is the mean over the seeds.")
    answers = [part.answers for each in by for part in each.parts]
    sentences.append(f"A part has {min(answers):,} to {max(answers):,} answers, and few say little.")
    without = [
        part.name
        for each in by
        for place, part in enumerate(each.parts)
        if not any(scores[place] for scores in each.scores.values())
    ]
    if without:
        sentences.append(f"Of one class alone, and so without {metric}: {formats.listed(without)}.")
    return " ".join(sentences)


def _table(by: Sequence[PartScores], metric: str) -> Table:
    """A row for each mechanism and baseline, a column for each part."""
    labels = dict.fromkeys(label for each in by for label in each.scores)
    return Table(
        caption=f"{metric} by part, and how many answers it has",
        columns=(
            "row",
            *(f"{each.title} {part.name} ({part.answers:,})" for each in by for part in each.parts),
        ),
        rows=tuple(
            (
                label,
                *(
                    value
                    for each in by
                    for value in (each.means(label) if label in each.scores else [None] * len(each.parts))
                ),
            )
            for label in labels
        ),
    )


def _panel(by: PartScores, styles: Mapping[str, Style], metric: str) -> Panel:
    labels = [label for label in styles if label in by.scores]
    rows = {label: by.means(label) for label in (*labels, by.baseline) if label}
    marks: list[Mark] = list(_level(by))
    for place, label in enumerate(labels):
        shift = 0.0 if by.numbers else SPREAD * ((place + 0.5) / len(labels) - 0.5)
        known = [(x, value) for x, value in enumerate(rows[label]) if value is not None]
        if by.numbers and known:
            marks.append(line(label, styles[label], known))
        for x, value in known:
            words = f"{label}, {by.title} {by.parts[x].name}: {metric} {formats.score(value)}"
            marks.append(sign(label, styles[label], (x + shift, value), words))
    heights = [value for values in rows.values() for value in values if value is not None] or [0.0]
    low, high = min(heights), max(heights)
    margin = 0.06 * (high - low) or 0.05
    title = f"By {by.title}"
    return Panel(
        title=title,
        description=f"{title}. {'; '.join(_sentences(by, rows))}.",
        x=_axis(by),
        y=Axis(low=low - margin, high=high + margin, ticks=ticks(low - margin, high + margin)),
        marks=tuple(marks),
    )


def _level(by: PartScores) -> Iterator[Line]:
    """The best baseline: a line through the parts, or one across each."""
    values = by.means(by.baseline) if by.baseline else []
    known = [(float(x), value) for x, value in enumerate(values) if value is not None]
    lines = [known] if by.numbers else [[(x - SPREAD / 2, y), (x + SPREAD / 2, y)] for x, y in known]
    for points in filter(None, lines):
        course = formats.score(points[0][1])
        course = f"from {course} to {formats.score(points[-1][1])}" if by.numbers else course
        yield Line(
            row=None,
            points=tuple(points),
            colour="var(--grey)",
            width=6,
            opacity=0.45,
            words=f"baseline {by.baseline}: {course}",
        )


def _sentences(by: PartScores, rows: Mapping[str, Sequence[float | None]]) -> Iterator[str]:
    for label, values in rows.items():
        parts = [f"{part.name} {formats.score(value)}" for part, value in zip(by.parts, values, strict=True)]
        yield f"{label}: {', '.join(parts)}"


def _axis(by: PartScores) -> Axis:
    """Parts side by side; where their names have no room, those of some, by the lowest number of each."""
    names, title = [part.name.replace(" to ", "–") for part in by.parts], by.title
    step = 1
    if by.numbers and sum(map(len, names)) > LETTERS:
        names, title = [part.first for part in by.parts], f"{by.title}, from"
        step = -(-len(names) // MOST_NAMES)
    edge = 0.25 if by.numbers else 0.5
    return Axis(
        title=title,
        low=-edge,
        high=len(names) - 1 + edge,
        ticks=tuple((float(place), name) for place, name in enumerate(names) if place % step == 0),
    )


PARTS = Section(id="parts", title="By parts", of=parts_content)
