"""The leaderboard, the cost by length and the list of mechanisms as tables for a terminal."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from subquad.report import formats
from subquad.report.conversion import MEASURES
from subquad.report.conversion_figures import COSTS, SOFTMAX, STAGES
from subquad.report.cost import QUANTITIES, Curve, Scaling
from subquad.report.leaderboard import BoardRow, carried
from subquad.report.merits import DOES
from subquad.report.overview import BEST_MARK, OF_THESE_MODELS, Overview, Place
from subquad.report.question import Question
from subquad.report.recommendation import Recommendation

COLUMNS_OF_COST = {
    "forward_ms": "forward",
    "forward_backward_ms": "forward and backward",
    "peak_mb": "memory",
}

ABREAST = 4  # mechanisms side by side in 80 columns


def table(title: str, *columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are text, and the others numbers."""
    made = Table(
        title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for place, column in enumerate(columns):
        if place < left:
            made.add_column(Text(column), overflow="fold")
        else:
            made.add_column(Text(column), justify="right", no_wrap=True)
    return made


def overview(shown: Overview) -> Table:
    """Every mechanism's score on every task, and what they come to."""
    means = ["average"] * bool(shown.averaged) + ["mean rank"] * bool(shown.ranked)
    made = table("overview", "attention", *(task.label for task in shown.tasks), *means)
    for column in made.columns[1:]:
        column.no_wrap, column.overflow = False, "fold"
    for row in shown.rows:
        cells = [row.label, *map(_place, row.places)]
        cells += [formats.score(row.average)] * bool(shown.averaged)
        cells += [formats.ABSENT if row.mean_rank is None else f"{row.mean_rank:.1f}"] * bool(shown.ranked)
        made.add_row(*map(Text, cells))
    baselines = [formats.score(task.baseline_score) for task in shown.tasks]
    made.add_row(*map(Text, ("best baseline", *baselines)), style="dim")
    return made


def overview_key(shown: Overview) -> list[str]:
    """How to read it, a line each."""
    best = BEST_MARK + (OF_THESE_MODELS if shown.few_seeds else "")
    lines = [f"* {best}", "< below the best baseline, ≈ not told apart from it"]
    return [*lines, *(f"{name}: {text}" for name, text in shown.notes.items())]


def quality(question: Question, rows: Sequence[BoardRow]) -> Table:
    """Scores beside baselines, best first."""
    claims = any(row.score and row.score.interval for row in rows)
    grouped = any(row.group for row in rows)
    scores = ["95 % interval"] * claims + ["group"] * grouped
    made = table(question.title, "attention", question.metric.label, *scores)
    made.add_column("", overflow="fold")
    for row in rows:
        cells = [row.label, _score(row)]
        cells += [_interval(row)] * claims + [row.group] * grouped
        made.add_row(*map(Text, (*cells, _note(row))), style="dim" if row.kind == "baseline" else "")
    return made


def costs(question: Question, rows: Sequence[BoardRow]) -> Table:
    """What each row takes at the comparison's length."""
    title = f"cost at {question.length:,} {question.units}"
    states = carried(rows)
    made = table(title, "attention", "training", "latency", "memory", *["state"] * states, "weights")
    for row in rows:
        if row.costs and row.parameters:
            made.add_row(
                Text(row.label),
                f"{formats.significant(row.costs.units_per_second)} {question.units}/s",
                f"{formats.significant(row.costs.latency_ms)} ms",
                f"{formats.significant(row.costs.training_peak_mb)} MB",
                *[f"{formats.significant(row.costs.state_mb)} MB"] * states,
                formats.count(row.parameters.total),
            )
    return made


def lengths(curves: Sequence[Curve], quantity: str) -> list[Table]:
    """One quantity by length: what mechanisms take, their ratio to fused softmax, their part of the roofline.

    Other packages follow, with ratios of their own.
    """
    unit = "MB" if quantity.endswith("mb") else "ms"
    roofline = any(curve.rooflines(quantity) for curve in curves)
    notes = "ratio to torch's fused softmax" + (", of the machine's roofline" if roofline else "")
    title = f"{QUANTITIES[quantity]}, {unit} ({notes})"
    return [
        _lengths(title, curves[first : first + ABREAST], quantity) for first in range(0, len(curves), ABREAST)
    ]


def _lengths(title: str, curves: Sequence[Curve], quantity: str) -> Table:
    made = table(title, "tokens", *(curve.label for curve in curves), left=0)
    for column in made.columns[1:]:
        column.no_wrap, column.overflow = False, "fold"
    points = [
        (dict(curve.points(quantity)), dict(curve.points(quantity, reference=True))) for curve in curves
    ]
    rooflines = [dict(curve.rooflines(quantity)) for curve in curves]
    lengths = sorted({length for ours, _ in points for length in ours})
    for n in lengths:
        cells = (
            _cell(ours.get(n), theirs.get(n), roofline.get(n))
            for (ours, theirs), roofline in zip(points, rooflines, strict=True)
        )
        made.add_row(f"{n:,}", *cells)
    _add_peers(made, curves, quantity, lengths)
    scalings = [curve.scaling(quantity) for curve in curves]
    made.add_section()
    made.add_row("exponent", *(_exponent(scaling) if scaling else "" for scaling in scalings))
    made.add_row(
        "crossover", *(str(scaling.crossover or formats.ABSENT) if scaling else "" for scaling in scalings)
    )
    made.add_row("form", *(curve.form for curve in curves), style="dim")
    return made


def recommendation(result: Recommendation) -> Table:
    """What was measured of each candidate at the length, the recommended first."""
    wish = result.wish
    timed = [name for name in DOES if any(name in row.candidate.speeds for row in result.rows)]
    title = f"{wish.length:,} tokens: times as fast as fused softmax"
    made = table(
        title,
        "attention",
        *("next" if name == "step" else DOES[name] for name in timed),
        "MB",
        *wish.exercises,
    )
    made.add_column("", overflow="fold")
    for row in result.rows:
        candidate = row.candidate
        speeds = [candidate.speeds.get(name) for name in timed]
        reached = {each.exercise: formats.score(each.score.mean) for each in candidate.trained}
        cells = [
            candidate.label,
            *(formats.times(speed.ratio) if speed else formats.ABSENT for speed in speeds),
            formats.significant(candidate.state_mb if wish.streaming else candidate.memory_mb),
            *(reached.get(exercise, formats.ABSENT) for exercise in wish.exercises),
            row.status,
        ]
        made.add_row(*map(Text, cells), style="bold" if row.status == "recommended" else "")
    return made


def mechanisms(known: Sequence[Mapping[str, Any]]) -> Table:
    """Traits, as `subquad list --json` has them."""
    made = table("mechanisms", "name", "family", "forms", "state", "cost", "arXiv", left=6)
    made.collapse_padding = True  # so that it fits into 80 columns
    for column in made.columns:
        column.no_wrap = True
    for each in known:
        forms = (
            "both"
            if each["bidirectional"] and each["causal"]
            else "causal"
            if each["causal"]
            else "bidirectional"
        )
        state = each["state"] or formats.ABSENT
        paper = each["paper"].removeprefix("arXiv:")
        made.add_row(*map(Text, (each["name"], each["family"], forms, state, f"n^{each['cost']:g}", paper)))
    return made


def layers(known: Sequence[Mapping[str, Any]]) -> Table:
    """Traits of whole layers; with a mechanism inside, `NAME:inside=…`, they are the best that it allows."""
    made = table("whole layers", "name", "forms", "state", "tokens out", "arXiv", left=5)
    for each in known:
        forms = "both" if each["causal"] else "bidirectional"
        out = "as came in" if each["keeps_length"] else "fewer"
        paper = each["paper"].removeprefix("arXiv:")
        made.add_row(*map(Text, (each["name"], forms, each["state"] or formats.ABSENT, out, paper)))
    return made


def options(known: Sequence[Mapping[str, Any]]) -> Table:
    """What can be said of a mechanism behind its name, with the defaults."""
    made = table("options", "name", "as in NAME:option=value,…", left=2)
    made.columns[0].no_wrap = True
    for each in known:
        if each["options"]:
            made.add_row(each["name"], " ".join(f"{name}={value}" for name, value in each["options"].items()))
    return made


def tasks(known: Sequence[Mapping[str, Any]]) -> Table:
    made = table("tasks", "name", "targets", "what it is", left=3)
    for each in known:
        made.add_row(each["name"], ", ".join(each["targets"]) or "as the data say", each["description"])
    return made


def prepared(known: Sequence[Mapping[str, Any]]) -> Table:
    """The data sets that are kept."""
    made = table("data sets", "task", "MB", "made")
    for each in known:
        share = "damaged" if each["done"] is None else f"{each['done']:.0%}"
        made.add_row(Text(each["asked"]), f"{each['bytes'] / 1e6:,.1f}", share)
    return made


def conversion(document: Mapping[str, Any]) -> list[Table]:
    """What a converted model is worth at each stage, and what it takes by length."""
    made: list[Table] = []
    if stages := document["stages"]:
        names = [name for name in MEASURES if name in stages[0]["quality"]]
        shown = table("quality", "stage", "steps", *(MEASURES[name][0] for name in names))
        for stage in stages:
            scores = (formats.score(stage["quality"][name]) for name in names)
            shown.add_row(STAGES[stage["name"]], formats.count(stage["steps"] or None), *scores)
        made.append(shown)
    for kind, title in (("reading", "a text by its length"), ("decoding", "the next token after so many")):
        columns = {what: words for (each, what), words in COSTS.items() if each == kind}
        shown = table(title, "attention", "tokens", *(f"{label}, {unit}" for label, unit in columns.values()))
        for measured in document[kind]:
            for side, name in (("original", SOFTMAX), ("converted", document["asked"]["attention"])):
                cells = (formats.significant(measured[side][what]) for what in columns)
                shown.add_row(Text(name), f"{measured['tokens']:,}", *cells)
        made += [shown] if document[kind] else []
    return made


def _add_peers(made: Table, curves: Sequence[Curve], quantity: str, lengths: Sequence[int]) -> None:
    """A row for each other package and length at which it was timed."""
    for name in dict.fromkeys(name for curve in curves for cell in curve.cells for name in cell.peers):
        made.add_section()
        rows = [
            {
                cell.length: _cell(cell.peers[name].get(quantity), cell.reference.get(quantity))
                for cell in curve.cells
                if name in cell.peers
            }
            for curve in curves
        ]
        for n in lengths:
            if quantity.endswith("_ms") and any(n in cells for cells in rows):
                made.add_row(f"{name} {n:,}", *(cells.get(n, "") for cells in rows))


def _cell(ours: float | None, theirs: float | None, roofline: float | None = None) -> str:
    if ours is None:
        return formats.ABSENT
    notes = [formats.times(ours / theirs)] if theirs else []
    notes += [f"{roofline / ours:.0%}"] if roofline else []
    return f"{formats.significant(ours)} ({', '.join(notes)})" if notes else formats.significant(ours)


def _exponent(scaling: Scaling) -> str:
    return scaling.note or formats.significant(scaling.exponent)


def _place(place: Place) -> str:
    if place.score is None:
        return place.note.partition(":")[0].partition(",")[0] or formats.ABSENT
    marks = "*" * place.best
    marks += {"below": "<", "not told apart": "≈"}.get(place.beside_baseline or "", "")
    return f"{formats.score(place.score.mean)} {marks}".rstrip()


def _score(row: BoardRow) -> str:
    if row.score is None:
        return formats.ABSENT
    spread = "" if row.score.deviation is None else f" ± {formats.score(row.score.deviation)}"
    return formats.score(row.score.mean) + spread


def _interval(row: BoardRow) -> str:
    if row.score is None or row.score.interval is None:
        return formats.ABSENT
    return f"{formats.score(row.score.interval.low)}–{formats.score(row.score.interval.high)}"


def _note(row: BoardRow) -> str:
    notes = ["baseline"] if row.kind == "baseline" else ["causal"] if row.form == "causal" else []
    if row.beside_baseline in ("below", "not told apart"):
        notes.append("below baseline" if row.beside_baseline == "below" else "≈ baseline")
    if row.success and row.success.stuck:
        mean = f" ({formats.score(row.success.mean)})" if row.success.above else ""
        notes.append(f"{row.success.above} of {formats.plural(row.success.runs, 'run')} above majority{mean}")
    if row.parameters and row.parameters.marked:
        notes.append(f"{formats.percent(row.parameters.beyond_reference or 0.0)} weights")
    for status, runs in Counter(failure.status for failure in row.failures).items():
        notes.append(f"{runs} of {formats.plural(row.planned, 'run')} {status}")
    if row.missing:
        notes.append(f"{formats.plural(row.missing, 'run')} missing")
    if row.refusal:
        notes.append(f"cannot: {row.refusal}")
    return ", ".join(notes)
