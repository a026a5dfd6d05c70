"""The figures of a conversion: what was learnt step by step, and cost by length."""

from collections.abc import Mapping, Sequence
from typing import Any

from subquad.report import formats
from subquad.report.figures.figure import Axis, Figure, Mark, Panel, Point, line, sign, ticks
from subquad.report.figures.html import figure_html
from subquad.report.markup import Markup
from subquad.report.sections.cost import lengths_axis, logarithmic_ticks
from subquad.report.sections.learning import running_mean
from subquad.report.styles import Style, styles_of
from subquad.report.table import Cell, Table

Document = Mapping[str, Any]  # what `integrations.huggingface.conversion` writes

STAGES = {
    "original": "as it was",
    "converted": "converted",
    "transfer": "after attention transfer",
    "distilled": "after distillation",
}
COSTS = {  # of "reading" and "decoding": the label, the unit
    ("reading", "ms"): ("time of a text", "ms"),
    ("reading", "mb"): ("memory of a text", "MB"),
    ("decoding", "tokens_per_second"): ("tokens generated a second", "1/s"),
    ("decoding", "cache_mb"): ("cache", "MB"),
}
SOFTMAX = "softmax"
WINDOW = 20  # points of a loss to each point of the window of its running mean


def learning_content(document: Document) -> Markup | None:
    """The loss of each step, a panel for each stage that has any."""
    learnt = [stage for stage in document["stages"] if stage["loss"]]
    if not learnt:
        return None
    attention = document["asked"]["attention"]
    style = styles_of([SOFTMAX, attention])[attention]
    panels: list[Panel] = []
    for stage in learnt:
        smooth = running_mean(stage["loss"], max(1, len(stage["loss"]) // WINDOW))
        points = list(enumerate(smooth, 1))
        course = f"from {formats.score(smooth[0])} to {formats.score(smooth[-1])}"
        low, high = axis_ends(smooth)
        title = "Loss of the transfer" if stage["name"] == "transfer" else "Loss of the distillation"
        panels.append(
            Panel(
                title=title,
                description=f"{title}: {course}.",
                x=Axis(
                    title="steps", low=0, high=1.03 * len(points), ticks=ticks(0, 1.03 * len(points), most=5)
                ),
                y=Axis(low=low, high=high, ticks=ticks(low, high)),
                marks=(line(attention, style, points, words=f"{attention}: {course}"),),
            )
        )
    rows = tuple(
        (STAGES[stage["name"]], step, loss) for stage in learnt for step, loss in enumerate(stage["loss"], 1)
    )
    columns = ("stage", "step", "loss")
    every = max(1, len(rows) // WINDOW)
    return figure_html(
        Figure(
            name="learning",
            caption="Of each step before it was made, as a running mean. That of the transfer is the mean "
            "over layers of the error beside softmax attention; that of the distillation is the divergence "
            "from the original, or the relative error of hidden states.",
            panels=tuple(panels),
            legend=((attention, style),),
            line=True,
            table=Table(
                caption="Some of the steps; the download has all", columns=columns, rows=rows[::every]
            ),
            data=Table(caption="Losses", columns=columns, rows=rows),
        )
    )


def cost_content(document: Document) -> Markup | None:
    """The model as it was beside the converted one, a panel for each quantity, both axes logarithmic."""
    if not document["reading"]:
        return None
    attention = document["asked"]["attention"]
    styles = styles_of([SOFTMAX, attention])
    sides = {"original": SOFTMAX, "converted": attention}
    panels = [
        cost_panel(document[kind], what, f"{label.capitalize()}, {unit}", unit, sides, styles)
        for (kind, what), (label, unit) in COSTS.items()
        if any(each[side][what] for each in document[kind] for side in sides)
    ]
    rows: list[tuple[Cell, ...]] = []
    for number, read in enumerate(document["reading"]):
        decoded = document["decoding"][number] if document["decoding"] else {}
        for side, label in sides.items():
            each = {**read[side], **decoded.get(side, {})}
            rows.append((label, read["tokens"], *(each.get(what) for kind, what in COSTS if document[kind])))
    table = Table(
        caption="Cost of the whole model by length",
        columns=(
            "attention",
            "tokens",
            *(f"{label}, {unit}" for (kind, _), (label, unit) in COSTS.items() if document[kind]),
        ),
        rows=tuple(rows),
    )
    return figure_html(
        Figure(
            name="cost",
            caption="The whole model on one text of each length, with the attention that it had and with the "
            "converted one, timed in turns in one process. Memory is beyond the model's own.",
            panels=tuple(panels),
            legend=tuple((label, styles[label]) for label in sides.values()),
            line=True,
            table=table,
            data=table,
        )
    )


def cost_panel(
    measured: Sequence[Document],
    what: str,
    title: str,
    unit: str,
    sides: Mapping[str, str],
    styles: Mapping[str, Style],
) -> Panel:
    marks: list[Mark] = []
    sentences: list[str] = []
    heights: list[float] = []
    for side, label in sides.items():
        points: list[Point] = [
            (each["tokens"], each[side][what]) for each in measured if each[side][what] > 0
        ]
        heights += [y for _, y in points]
        ends = ", ".join(f"{formats.significant(y)} {unit} at {x:,} tokens" for x, y in points)
        marks.append(line(label, styles[label], points, words=f"{label}: {ends}"))
        marks += [
            sign(
                label, styles[label], at, f"{label}: {formats.significant(at[1])} {unit} at {at[0]:,} tokens"
            )
            for at in points
        ]
        sentences.append(f"{label}: {ends}")
    low, high = min(heights) / 1.25, 1.6 * max(heights)
    return Panel(
        title=title,
        description=f"{title}. {'; '.join(sentences)}.",
        x=lengths_axis([each["tokens"] for each in measured]),
        y=Axis(low=low, high=high, ticks=logarithmic_ticks(low, high), logarithmic=True),
        marks=tuple(marks),
    )


def axis_ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05
    return low - margin, high + margin
