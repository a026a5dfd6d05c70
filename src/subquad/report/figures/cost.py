"""Cost by length: time and memory beside fused softmax, on logarithmic axes, with the crossovers."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from subquad.report import units
from subquad.report.cost import QUANTITIES, Curve, baselines, part
from subquad.report.figures.figure import Figure, Json, Panel, axes, line, plain
from subquad.report.looks import Look
from subquad.report.table import Cell, Table

UNITS = {"forward_ms": "ms", "forward_backward_ms": "ms", "peak_mb": "MB"}
FEW = 2  # powers of ten on an axis, up to which it has ticks between them

Points = Sequence[tuple[float, float]]


def cost_by_length(found: Sequence[Curve], looks: Mapping[str, Look]) -> Figure | None:
    """A panel for each quantity; None where nothing was measured."""
    panels = [
        _panel(found, looks, quantity)
        for quantity in QUANTITIES
        if any(y > 0 for curve in found for _, y in curve.points(quantity))
    ]
    if not panels:
        return None
    said = [
        "One attention layer at growing lengths, both axes logarithmic. Fused softmax is timed in turns with "
        "each mechanism, in the same process. A ring is a crossover: from there on the mechanism stays ahead."
    ]
    if len({curve.form for curve in found}) > 1:
        said.append("Causal mechanisms stand beside the causal form of it, which is dotted.")
    if any(cell.floor for curve in found for cell in curve.cells):
        said.append(
            "A thin dotted line is a mechanism's floor: its own products at the highest rates of the machine."
        )
    if any(curve.failures for curve in found):
        said.append("A cross at the top is a length at which it failed.")
    if len({machine for curve in found for machine in curve.machines}) > 1:
        said.append("The cells come from different machines; compare lines of one machine only.")
    table = _table(found)
    return Figure(
        name="cost",
        caption=" ".join(said),
        panels=tuple(panels),
        legend=tuple((curve.label, looks[curve.label]) for curve in found),
        line=True,
        reference="fused softmax (PyTorch)",
        table=table,
        data=table,
    )


def _table(found: Sequence[Curve]) -> Table:
    columns = ["mechanism", "tokens"]
    for quantity, words in QUANTITIES.items():
        columns += [f"{words}, {UNITS[quantity]}", f"fused softmax, {UNITS[quantity]}"]
    timed = [quantity for quantity in QUANTITIES if any(curve.floors(quantity) for curve in found)]
    columns += [f"{QUANTITIES[quantity]}, of the floor" for quantity in timed]
    rows: list[tuple[Cell, ...]] = []
    for curve in found:
        for cell in curve.cells:
            pairs = [(cell.values.get(name), cell.baseline.get(name)) for name in QUANTITIES]
            parts = [part(cell, quantity) for quantity in timed]
            rows.append(
                (curve.label, cell.length, *(value for pair in pairs for value in pair), *parts, "ok")
            )
        for length, failure in zip(curve.failed_lengths, curve.failures, strict=True):
            rows.append((curve.label, length, *[None] * (len(columns) - 2), failure.status))
    return Table(
        caption="Cost of one attention layer by length", columns=(*columns, "status"), rows=tuple(rows)
    )


def _panel(found: Sequence[Curve], looks: Mapping[str, Look], quantity: str) -> Panel:
    unit = UNITS[quantity]
    title = f"{QUANTITIES[quantity].capitalize()}, {unit}"
    data, said, heights = [], [], []
    references = baselines(found, quantity)
    for form, points in references.items():
        name = "fused softmax" if len(references) == 1 else f"fused softmax, {form}"
        data.append(_reference(name, points, unit, solid=form == "bidirectional" or len(references) == 1))
        heights += [y for _, y in points if y > 0]
    for curve in found:
        points = [(x, y) for x, y in curve.points(quantity) if y > 0]
        if not points:
            continue
        heights += [y for _, y in points]
        data.append(_mechanism(curve.label, looks[curve.label], points, unit))
        if floor := curve.floors(quantity):
            data.append(_floor(curve.label, looks[curve.label], floor, unit))
            heights += [y for _, y in floor]
        said.append(f"{curve.label}: {_ends(points, unit)}")
        scaling = curve.scaling(quantity)
        if scaling and scaling.crossover and not scaling.crossover.at_or_below:
            at = scaling.crossover.length
            data.append(_ring(curve.label, looks[curve.label], at, interpolated(points, at)))
            said.append(f"{curve.label} crosses fused softmax at {at:,.0f} tokens")
    low, high = min(heights), max(heights)
    for curve in found:
        for length, failure in zip(curve.failed_lengths, curve.failures, strict=True):
            data.append(_cross(curve.label, looks[curve.label], length, 1.6 * high, failure.status))
            said.append(f"{curve.label}: {failure.status} at {length:,} tokens")
    lengths = sorted({cell.length for curve in found for cell in curve.cells})
    lengths = sorted({*lengths, *(length for curve in found for length in curve.failed_lengths)})
    layout = axes(x="tokens")
    layout["xaxis"] |= {
        "type": "log",
        "tickvals": lengths,
        "tickangle": 0,
        "ticktext": [f"{length:,}" for length in lengths],
        "range": [math.log10(lengths[0]) - 0.06, math.log10(lengths[-1]) + 0.06],
    }
    ticks = logarithmic_ticks(low, high)
    layout["yaxis"] |= {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{tick:,g}" for tick in ticks],
        "range": [math.log10(low) - 0.1, math.log10(high) + 0.32],
    }
    return Panel(title=title, description=f"{title}. {'; '.join(said)}.", data=data, layout=layout)


def _mechanism(label: str, look: Look, points: Points, unit: str) -> Json:
    drawn = line(label, look, *_columns(points), what=unit, marks=True)
    return {**drawn, **_hover(label, points, unit)}


def _reference(label: str, points: Points, unit: str, *, solid: bool) -> Json:
    """Fused softmax: broad and grey, behind all others, and not to be hidden."""
    look = Look(colour="var(--floor)", place=0)
    drawn = line(label, look, *_columns(points), what=unit, marks=len(points) == 1)
    drawn["line"] |= {"width": 6, "dash": "solid" if solid else "dot"}
    return {**drawn, **_hover(label, points, unit), "opacity": 0.45, "meta": None}


def _floor(label: str, look: Look, points: Points, unit: str) -> Json:
    """The machine's own limit for a mechanism: thin and dotted, in its colour."""
    drawn = line(label, look, *_columns(points), what=unit, marks=len(points) == 1)
    drawn["line"] |= {"width": 1, "dash": "dot"}
    return {**drawn, **_hover(f"floor of {label}", points, unit)}


def _hover(label: str, points: Points, unit: str) -> Json:
    return {
        "text": [f"{plain(label)}, {units.significant(y)} {unit}" for _, y in points],
        "hovertemplate": "%{text}<br>%{x:,.0f} tokens<extra></extra>",
    }


def _mark(label: str, x: float, y: float, words: str, marker: Json) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(label),
        "meta": label,
        "x": [x],
        "y": [y],
        "text": [plain(words)],
        "hovertemplate": "%{text}<br>%{x:,.0f} tokens<extra></extra>",
        "marker": marker,
    }


def _ring(label: str, look: Look, x: float, y: float) -> Json:
    marker = {"symbol": "circle-open", "size": 17, "color": look.colour, "line": {"width": 2.25}}
    return _mark(label, x, y, f"{label} stays ahead from here on", marker)


def _cross(label: str, look: Look, x: float, y: float, status: str) -> Json:
    stroke = {"width": 2, "color": look.colour}
    marker = {"symbol": "x-thin", "size": 9, "color": look.colour, "line": stroke}
    return _mark(label, x, y, f"{label}: {status}", marker)


def interpolated(points: Points, x: float) -> float:
    """The value at `x`, on straight lines between logarithms."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1:
            part = math.log(x / x0) / math.log(x1 / x0)
            return y0 * (y1 / y0) ** part
    return points[0][1] if x < points[0][0] else points[-1][1]


def logarithmic_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten, or the powers alone where they are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1.0, 2.0, 5.0) if math.log10(high / low) < FEW else (1.0,)
    return [step * 10.0**power for power in powers for step in steps]


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _ends(points: Points, unit: str) -> str:
    (x0, y0), (x1, y1) = points[0], points[-1]
    return f"{units.significant(y0)} {unit} at {x0:,} tokens, {units.significant(y1)} {unit} at {x1:,} tokens"
