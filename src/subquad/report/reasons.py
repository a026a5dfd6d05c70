"""What an answer rests on besides scores, and what a reader should hold against it."""

from collections.abc import Sequence

from subquad.report import formats
from subquad.report.cost import Curve, Scaling
from subquad.report.leaderboard import REFERENCE, BoardRow
from subquad.report.question import Question


def costs(row: BoardRow, rows: Sequence[BoardRow], curves: Sequence[Curve], question: Question) -> list[str]:
    """What taking the row costs, beside softmax, here and at other lengths."""
    notes = []
    if row.label != REFERENCE and row.ratios is not None:
        parts = [
            _ratio("trains", row.ratios.units_per_second, "as fast as softmax"),
            _ratio("answers in", row.ratios.latency_ms, "its time"),
            _ratio("takes", row.ratios.training_peak_mb, "its memory in training"),
        ]
        if known := [part for part in parts if part]:
            notes.append(f"At {question.length:,} {question.units} it {formats.listed(known)}.")
    elif row.label != REFERENCE and any(other.label == REFERENCE and other.costs for other in rows):
        notes.append("Its runs and those of softmax are from different machines, so that no ratio is given.")
    return notes + _lengths(row, curves)


def limits(question: Question, rows: Sequence[BoardRow]) -> list[str]:
    """What the reader should hold against the answer."""
    mechanisms = [row for row in rows if row.kind == "mechanism"]
    refused = [f"{label} ({reason})" for label, reason in question.refusals.items()]
    failed = [
        f"{row.label}, {len(row.failures)} of {formats.plural(row.planned, 'run')}{_kinds(row)}"
        for row in mechanisms
        if row.failures
    ]
    stuck = [
        f"{row.label}, {row.stuck} of {formats.plural(row.finished, 'run')}"
        for row in mechanisms
        if row.stuck
    ]
    notes = [f"Cannot take this task: {formats.few(refused, by='; ')}."] if refused else []
    notes += [f"Failed: {formats.few(failed, by='; ')}."] if failed else []
    notes += [f"Not above the majority: {formats.few(stuck, by='; ')}."] if stuck else []
    notes += _cut_short(question, mechanisms)
    notes += _without_examples(mechanisms)
    if missing := sum(row.missing for row in rows):
        planned = sum(row.planned for row in mechanisms)
        are = "is" if missing == 1 else "are"
        notes.append(
            f"{missing} of {formats.plural(planned, 'training run')} {are} missing; "
            "start the same command again to do what is missing."
        )
    if machines(rows) > 1:
        notes.append("The runs are from different machines: their speeds are not compared.")
    return notes


def cheapest(equals: Sequence[BoardRow]) -> BoardRow:
    """Of rows equal in quality the one that trains fastest; the best where speeds cannot be compared."""
    speeds = {row.label: row.costs.units_per_second or 0.0 for row in equals if row.costs}
    if machines(equals) != 1:
        return equals[0]
    return max(equals, key=lambda row: speeds.get(row.label, 0.0))


def machines(rows: Sequence[BoardRow]) -> int:
    return len({machine for row in rows if row.costs for machine in row.costs.machines})


def best_baseline(rows: Sequence[BoardRow]) -> BoardRow:
    return next(row for row in rows if row.kind == "baseline" and row.score)  # rows come best first


def _ratio(verb: str, ratio: float | None, rest: str) -> str:
    return "" if ratio is None else f"{verb} {formats.times(ratio)} {rest}"


def _lengths(row: BoardRow, curves: Sequence[Curve]) -> list[str]:
    """From which length on the row is faster than fused softmax; for softmax, what else would be."""
    others = [curve for curve in curves if curve.label != REFERENCE and row.label in (curve.label, REFERENCE)]
    quantity = "forward_backward_ms"
    if not any(curve.scaling(quantity) for curve in others):
        quantity = "forward_ms"
    known = [(curve, scaling) for curve in others if (scaling := curve.scaling(quantity))]
    faster = [(curve, scaling) for curve, scaling in known if scaling.crossover]
    faster.sort(key=lambda pair: pair[1].crossover.length if pair[1].crossover else 0)
    slower = [curve for curve, scaling in known if not scaling.crossover]
    when = ", in training" if quantity == "forward_backward_ms" else ""
    notes = []
    if faster:
        rest = [curve.label for curve, _ in faster[1:]]
        also = (
            f"; so {'is' if len(rest) == 1 else 'are'} {formats.few(rest)}, from there or later on"
            if rest
            else ""
        )
        notes.append(f"{_overtakes(*faster[0])}{when}{also}.")
    if slower:
        longest = min(curve.cells[-1].length for curve in slower)
        named = formats.few([curve.label for curve in slower])
        notes.append(
            f"{named} {'is' if len(slower) == 1 else 'are'} not faster than fused softmax up to "
            f"{longest:,} tokens{when}."
        )
    return notes


def _overtakes(curve: Curve, scaling: Scaling) -> str:
    crossover, longest = scaling.crossover, curve.cells[-1].length
    assert crossover
    faster = f"{curve.label} is faster than fused softmax"
    if crossover.at_or_below and len(curve.cells) == 1:
        return f"{faster} at {longest:,} tokens"
    if crossover.at_or_below:
        return f"{faster} from {crossover.length:,.0f} to {longest:,} tokens"
    return f"{faster} from about {formats.significant(crossover.length, digits=2)} tokens on"


def _kinds(row: BoardRow) -> str:
    kinds = list(dict.fromkeys(failure.status for failure in row.failures))
    return "" if kinds == ["failed"] else f" ({formats.listed(kinds)})"


def _cut_short(question: Question, mechanisms: Sequence[BoardRow]) -> list[str]:
    """Fits that were still getting better when they ended."""
    short = sum(row.cut_short for row in mechanisms)
    if not short:
        return []
    fits = formats.plural(sum(row.finished for row in mechanisms), "fit")
    seen = max((row.epochs for row in mechanisms if row.epochs), default=None)
    after = ""
    if seen is not None:
        shown = formats.significant(seen, digits=2)
        after = f", after {shown} of an epoch" if seen < 1 else f", after {shown} epochs"
    were = "was" if short == 1 else "were"
    more = f"more than {question.steps:,} steps"
    return [f"{short} of {fits} {were} at the best in the last step{after}: cut short. Give {more}."]


def _without_examples(mechanisms: Sequence[BoardRow]) -> list[str]:
    if any(row.score and row.score.over in ("seeds", None) for row in mechanisms):
        return [
            "These records hold no scores of single examples, so that nothing is known of other test "
            "examples: what is said knows of other seeds alone."
        ]
    return []
