"""What an answer rests on besides scores, and what a reader should hold against it."""

from collections.abc import Sequence

from subquad.report import units
from subquad.report.cost import Curve, Scaling
from subquad.report.leaderboard import REFERENCE, Row
from subquad.report.question import Question


def costs(row: Row, rows: Sequence[Row], curves: Sequence[Curve], question: Question) -> list[str]:
    """What taking the row costs, beside softmax, here and at other lengths."""
    told = []
    if row.label != REFERENCE and row.ratios is not None:
        parts = [
            _ratio("trains", row.ratios.units_per_second, "as fast as softmax"),
            _ratio("answers in", row.ratios.latency_ms, "its time"),
            _ratio("takes", row.ratios.training_peak_mb, "its memory in training"),
        ]
        if said := [part for part in parts if part]:
            told.append(f"At {question.length:,} {question.units} it {units.listed(said)}.")
    elif row.label != REFERENCE and any(other.label == REFERENCE and other.costs for other in rows):
        told.append("Its runs and those of softmax are from different machines, so that no ratio is given.")
    return told + _lengths(row, curves)


def limits(question: Question, rows: Sequence[Row]) -> list[str]:
    """What the reader should hold against the answer."""
    mechanisms = [row for row in rows if row.kind == "mechanism"]
    failed = [
        f"{row.label}, {len(row.failures)} of {units.plural(row.asked, 'run')}{_kinds(row)}"
        for row in mechanisms
        if row.failures
    ]
    stuck = [
        f"{row.label}, {row.stuck} of {units.plural(row.finished, 'run')}" for row in mechanisms if row.stuck
    ]
    told = [f"Failed: {units.few(failed, by='; ')}."] if failed else []
    told += [f"Not above the majority: {units.few(stuck, by='; ')}."] if stuck else []
    told += _cut_short(question, mechanisms)
    told += _without_examples(mechanisms)
    if missing := sum(row.missing for row in rows):
        asked = sum(row.asked for row in mechanisms)
        told.append(
            f"{missing} of {units.plural(asked, 'training run')} {'is' if missing == 1 else 'are'} missing; "
            "start the same command again to do what is missing."
        )
    if machines(rows) > 1:
        told.append("The runs are from different machines: their speeds are not compared.")
    return told


def cheapest(equals: Sequence[Row]) -> Row:
    """Of rows equal in quality the one that trains fastest; the best where speeds cannot be compared."""
    speeds = {row.label: row.costs.units_per_second or 0.0 for row in equals if row.costs}
    if machines(equals) != 1:
        return equals[0]
    return max(equals, key=lambda row: speeds.get(row.label, 0.0))


def machines(rows: Sequence[Row]) -> int:
    return len({machine for row in rows if row.costs for machine in row.costs.machines})


def best_baseline(rows: Sequence[Row]) -> Row:
    return next(row for row in rows if row.kind == "baseline" and row.score)  # rows come best first


def _ratio(verb: str, ratio: float | None, rest: str) -> str:
    return "" if ratio is None else f"{verb} {units.times(ratio)} {rest}"


def _lengths(row: Row, curves: Sequence[Curve]) -> list[str]:
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
    told = []
    if faster:
        rest = [curve.label for curve, _ in faster[1:]]
        also = (
            f"; so {'is' if len(rest) == 1 else 'are'} {units.few(rest)}, from there or later on"
            if rest
            else ""
        )
        told.append(f"{_overtakes(*faster[0])}{when}{also}.")
    if slower:
        longest = min(curve.cells[-1].length for curve in slower)
        named = units.few([curve.label for curve in slower])
        told.append(
            f"{named} {'is' if len(slower) == 1 else 'are'} not faster than fused softmax up to "
            f"{longest:,} tokens{when}."
        )
    return told


def _overtakes(curve: Curve, scaling: Scaling) -> str:
    crossover, longest = scaling.crossover, curve.cells[-1].length
    assert crossover
    faster = f"{curve.label} is faster than fused softmax"
    if crossover.at_or_below and len(curve.cells) == 1:
        return f"{faster} at {longest:,} tokens"
    if crossover.at_or_below:
        return f"{faster} from {crossover.length:,.0f} to {longest:,} tokens"
    return f"{faster} from about {units.significant(crossover.length, digits=2)} tokens on"


def _kinds(row: Row) -> str:
    kinds = list(dict.fromkeys(failure.status for failure in row.failures))
    return "" if kinds == ["failed"] else f" ({units.listed(kinds)})"


def _cut_short(question: Question, mechanisms: Sequence[Row]) -> list[str]:
    """Fits that were still getting better when they ended."""
    short = sum(row.cut_short for row in mechanisms)
    if not short:
        return []
    fits = units.plural(sum(row.finished for row in mechanisms), "fit")
    seen = max((row.epochs for row in mechanisms if row.epochs), default=None)
    after = ""
    if seen is not None:
        shown = units.significant(seen, digits=2)
        after = f", after {shown} of an epoch" if seen < 1 else f", after {shown} epochs"
    were = "was" if short == 1 else "were"
    more = "more steps" if question.steps is None else f"more than {question.steps:,} steps"
    return [f"{short} of {fits} {were} at the best in the last step{after}: cut short. Give {more}."]


def _without_examples(mechanisms: Sequence[Row]) -> list[str]:
    if any(row.score and row.score.over in ("seeds", None) for row in mechanisms):
        return [
            "These records hold no scores of single examples, so that nothing is known of other test "
            "examples: what is said knows of other seeds alone."
        ]
    return []
