"""Cost by length: time and memory beside fused softmax, on logarithmic axes, with the crossovers."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from subquad.report import formats
from subquad.report.cost import QUANTITIES, Curve, part, references
from subquad.report.figures.figure import Axis, Figure, Line, Mark, Panel, Point, Sign, line, sign
from subquad.report.figures.html import figure_html
from subquad.report.findings import ComparisonFindings
from subquad.report.markup import Markup, element, join
from subquad.report.section import SharedSection
from subquad.report.styles import Style
from subquad.report.table import Cell, Table, scrolling

UNITS = {"forward_ms": "ms", "forward_backward_ms": "ms", "peak_mb": "MB"}
DECADES_WITH_STEPS = 2  # powers of ten on an axis, up to which it has ticks between them
MAX_NAMED_LENGTHS = 6  # lengths that are named on an axis
RING = "M-8 0a8 8 0 1 0 16 0a8 8 0 1 0-16 0z"
CROSS = "M-4.5-4.5L4.5 4.5M4.5-4.5L-4.5 4.5"
SCALED = ("exponent", "crossover", "ratio")

Points = Sequence[Point]


def cost_content(findings: ComparisonFindings) -> Markup | None:
    figure = cost_by_length(findings.cost_curves, findings.styles)
    untimed = not_timed(findings.comparison)
    parts = (figure_html(figure), _scaling(findings.cost_curves)) if figure else ()
    return join((*parts, *(element("p", sentence) for sentence in untimed))) if parts or untimed else None


def not_timed(comparison: Mapping[str, Any]) -> list[str]:
    """Which rows are no attention, and why they have no line here; nothing where there are none."""
    benched = {row["label"] for row in comparison["rows"]}
    trained = dict.fromkeys(row["label"] for task in comparison["tasks"] for row in task["rows"])
    layers = [label for label in trained if label not in benched]
    if not layers or not comparison["bench"]:
        return []
    return [
        f"Not timed here: {formats.listed(layers)}. What is timed is attention by itself, and these are "
        "whole layers; the leaderboard has the speed and the memory of their models."
    ]


def cost_by_length(curves: Sequence[Curve], styles: Mapping[str, Style]) -> Figure | None:
    """A panel for each quantity; None where nothing was measured."""
    panels = [
        _panel(curves, styles, quantity)
        for quantity in QUANTITIES
        if any(y > 0 for curve in curves for _, y in curve.points(quantity))
    ]
    if not panels:
        return None
    sentences = [
        "One attention layer at growing lengths, both axes logarithmic. Fused softmax is timed in turns with "
        "each mechanism, in the same process. A ring is a crossover: from there on the mechanism stays ahead."
    ]
    if len({curve.form for curve in curves}) > 1:
        sentences.append("Causal mechanisms stand beside the causal form of it, which is dotted.")
    if any(cell.roofline for curve in curves for cell in curve.cells):
        sentences.append(
            "A thin dotted line is a mechanism's roofline: its own products at the machine's highest rates."
        )
    if any(curve.failures for curve in curves):
        sentences.append("A cross at the top is a length at which it failed.")
    if len({machine for curve in curves for machine in curve.machines}) > 1:
        sentences.append("The cells come from different machines; compare lines of one machine only.")
    table = _table(curves)
    return Figure(
        name="cost",
        caption=" ".join(sentences),
        panels=tuple(panels),
        legend=tuple((curve.label, styles[curve.label]) for curve in curves),
        line=True,
        reference="fused softmax (PyTorch)",
        table=table,
        data=table,
    )


def _table(curves: Sequence[Curve]) -> Table:
    columns = ["mechanism", "tokens"]
    for quantity, words in QUANTITIES.items():
        columns += [f"{words}, {UNITS[quantity]}", f"fused softmax, {UNITS[quantity]}"]
    timed = [quantity for quantity in QUANTITIES if any(curve.rooflines(quantity) for curve in curves)]
    columns += [f"{QUANTITIES[quantity]}, of the roofline" for quantity in timed]
    rows: list[tuple[Cell, ...]] = []
    for curve in curves:
        for cell in curve.cells:
            pairs = [(cell.values.get(name), cell.reference.get(name)) for name in QUANTITIES]
            parts = [part(cell, quantity) for quantity in timed]
            rows.append(
                (curve.label, cell.length, *(value for pair in pairs for value in pair), *parts, "ok")
            )
        for length, failure in zip(curve.failed_lengths, curve.failures, strict=True):
            rows.append((curve.label, length, *[None] * (len(columns) - 2), failure.status))
    return Table(
        caption="Cost of one attention layer by length", columns=(*columns, "status"), rows=tuple(rows)
    )


def _panel(curves: Sequence[Curve], styles: Mapping[str, Style], quantity: str) -> Panel:
    unit = UNITS[quantity]
    title = f"{QUANTITIES[quantity].capitalize()}, {unit}"
    marks: list[Mark] = []
    sentences, heights = [], []
    softmax_lines = references(curves, quantity)
    for form, points in softmax_lines.items():
        name = "fused softmax" if len(softmax_lines) == 1 else f"fused softmax, {form}"
        solid = form == "bidirectional" or len(softmax_lines) == 1
        marks.append(_reference(name, [(x, y) for x, y in points if y > 0], unit, solid=solid))
        heights += [y for _, y in points if y > 0]
    for curve in curves:
        points = [(x, y) for x, y in curve.points(quantity) if y > 0]
        if not points:
            continue
        style = styles[curve.label]
        heights += [y for _, y in points]
        marks.append(line(curve.label, style, points, words=f"{curve.label}: {_ends(points, unit)}"))
        marks += [sign(curve.label, style, at, _words(curve.label, at, unit)) for at in points]
        if roofline := curve.rooflines(quantity):
            marks.append(_roofline(curve.label, style, roofline, unit))
            heights += [y for _, y in roofline]
        sentences.append(f"{curve.label}: {_ends(points, unit)}")
        scaling = curve.scaling(quantity)
        if scaling and scaling.crossover and not scaling.crossover.at_or_below:
            at = scaling.crossover.length
            marks.append(_ring(curve.label, style, (at, interpolated(points, at))))
            sentences.append(f"{curve.label} crosses fused softmax at {at:,.0f} tokens")
    low, high = min(heights), max(heights)
    for curve in curves:
        for length, failure in zip(curve.failed_lengths, curve.failures, strict=True):
            style = styles[curve.label]
            marks.append(_cross(curve.label, style, (length, 1.6 * high), failure.status))
            sentences.append(f"{curve.label}: {failure.status} at {length:,} tokens")
    lengths = sorted({cell.length for curve in curves for cell in curve.cells})
    lengths = sorted({*lengths, *(length for curve in curves for length in curve.failed_lengths)})
    bottom, top = low / 1.25, 2.1 * high
    return Panel(
        title=title,
        description=f"{title}. {'; '.join(sentences)}.",
        x=lengths_axis(lengths),
        y=Axis(low=bottom, high=top, ticks=logarithmic_ticks(bottom, top), logarithmic=True),
        marks=tuple(marks),
    )


def lengths_axis(lengths: Sequence[int]) -> Axis:
    """Of lengths in tokens, from the shortest."""
    every = -(-len(lengths) // MAX_NAMED_LENGTHS)
    return Axis(
        title="tokens",
        low=lengths[0] / 1.15,
        high=lengths[-1] * 1.15,
        ticks=tuple((length, f"{length:,}") for length in lengths[::every]),
        logarithmic=True,
    )


def _reference(label: str, points: Points, unit: str, *, solid: bool) -> Line:
    """Fused softmax: broad and grey, behind all others, and not to be hidden."""
    return Line(
        row=None,
        points=tuple(_seen(points)),
        colour="var(--grey)",
        width=6,
        dash="" if solid else "1.5 6",
        opacity=0.45,
        words=f"{label}: {_ends(points, unit)}",
    )


def _roofline(label: str, style: Style, points: Points, unit: str) -> Line:
    """The machine's own limit for a mechanism: thin and dotted, in its colour."""
    words = f"roofline of {label}: {_ends(points, unit)}"
    return Line(
        row=label, points=tuple(_seen(points)), colour=style.colour, width=1, dash="1.5 2.5", words=words
    )


def _seen(points: Points) -> Points:
    """A line of one point would not be seen: it is given a little length."""
    (x, y), *others = points
    return points if others else [(0.95 * x, y), (1.05 * x, y)]


def _words(label: str, at: Point, unit: str) -> str:
    return f"{label}: {formats.significant(at[1])} {unit} at {at[0]:,.0f} tokens"


def _ring(label: str, style: Style, at: Point) -> Sign:
    words = f"{label} stays ahead from here on, from {at[0]:,.0f} tokens"
    return Sign(row=label, at=at, path=RING, colour=style.colour, words=words, hollow=True)


def _cross(label: str, style: Style, at: Point, status: str) -> Sign:
    words = f"{label}: {status} at {at[0]:,.0f} tokens"
    return Sign(row=label, at=at, path=CROSS, colour=style.colour, words=words, hollow=True)


def interpolated(points: Points, x: float) -> float:
    """The value at `x`, on straight lines between logarithms."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1:
            part = math.log(x / x0) / math.log(x1 / x0)
            return y0 * (y1 / y0) ** part
    return points[0][1] if x < points[0][0] else points[-1][1]


def logarithmic_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """1, 2 and 5 of each power of ten between, or the powers alone where they are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1.0, 2.0, 5.0) if math.log10(high / low) < DECADES_WITH_STEPS else (1.0,)
    values = [step * 10.0**power for power in powers for step in steps]
    return tuple((tick, f"{tick:,g}") for tick in values if low <= tick <= high)


def _ends(points: Points, unit: str) -> str:
    return ", ".join(f"{formats.significant(y)} {unit} at {x:,} tokens" for x, y in (points[0], points[-1]))


def _scaling(curves: Sequence[Curve]) -> Markup:
    """Fitted exponents and crossovers of each mechanism beside fused softmax."""
    if not any(curve.cells for curve in curves):
        return Markup()
    shown = [name for name in QUANTITIES if any(curve.points(name) for curve in curves)]
    groups = (element("th", QUANTITIES[name], colspan=3, scope="colgroup") for name in shown)
    names = [element("th", name, scope="col", class_="number") for name in SCALED] * len(shown)
    head = (
        element("tr", element("th", "mechanism", rowspan=2, scope="col"), *groups),
        element("tr", *names),
    )
    body = (
        element(
            "tr",
            element("th", curve.label, element("small", _reach(curve)), scope="row"),
            *(element("td", cell, class_="number") for name in shown for cell in _scaled(curve, name)),
        )
        for curve in curves
    )
    table = element(
        "table",
        element("caption", "Beside fused softmax on the same machine"),
        element("thead", *head),
        element("tbody", *body),
        class_="grouped",
    )
    note = (
        "Cost grows as length to the power of the exponent, fitted to the upper half of the lengths. From "
        "the crossover on, a mechanism stays below fused softmax. The ratio to it is taken at the longest "
        "length that the mechanism managed."
    )
    title = "Exponents and crossovers"
    return join((element("h3", title), element("p", note), scrolling(table, label=title)))


def _reach(curve: Curve) -> str:
    if not curve.cells:
        return "at no length"
    if len(curve.machines) > 1:
        return f"on {len(curve.machines)} machines, not compared"
    return f"up to {curve.cells[-1].length:,} tokens"


def _scaled(curve: Curve, quantity: str) -> list[str]:
    scaling = curve.scaling(quantity)
    if scaling is None:
        return [formats.ABSENT] * len(SCALED)
    slope = scaling.note if scaling.exponent is None else f"{scaling.exponent:.2f}"
    return [slope, str(scaling.crossover) if scaling.crossover else "none", formats.times(scaling.at_longest)]


COST = SharedSection(id="cost", title="Cost by length", of=cost_content)
