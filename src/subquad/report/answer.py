"""The answer in a sentence: which mechanism to take on this data and machine, and why; or why none.

Only what the runs carry is said. Fewer than three seeds carry no difference between mechanisms, a score
under the floor carries no merit, and figures of two machines carry no ratio.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from subquad.report import units
from subquad.report.cost import Curve
from subquad.report.leaderboard import BASELINE, Row


@dataclass(frozen=True, kw_only=True)
class Answer:
    verdict: Literal["take", "lead", "floor", "nothing"]  # "lead": too few seeds to say "take"
    label: str | None  # the mechanism; None: take none
    sentence: str
    reasons: tuple[str, ...]  # what it rests on, and what limits it


def headline(comparison: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The answer's sentence, from the rows of `leaderboard`."""
    return answer(comparison, rows, []).sentence


def answer(comparison: Mapping[str, Any], rows: Sequence[Row], curves: Sequence[Curve]) -> Answer:
    """The answer, from the rows of `leaderboard` and the curves of `cost.curves`."""
    scored = [row for row in rows if row.kind == "mechanism" and row.score is not None]
    limits = _limits(rows)
    if not scored:
        ended = any(row.failures for row in rows)
        return Answer(
            verdict="nothing",
            label=None,
            sentence="There is no answer: no run came to its end."
            if ended
            else "There is no answer yet: no run has come to its end.",
            reasons=tuple(limits),
        )
    metric = units.metric(comparison["metric"])
    if all(row.above_floor is False for row in scored):
        return _none(scored, rows, metric, limits)
    cleared = [row for row in scored if row.above_floor is not False]
    whole = [row for row in cleared if not row.failures and not row.missing] or cleared
    if not any(row.score.interval for row in whole if row.score):
        return _lead(whole, rows, metric, [*_costs(whole[0], rows, curves, comparison), *limits])
    return _take(whole, rows, metric, curves, comparison, limits)


def _none(scored: Sequence[Row], rows: Sequence[Row], metric: str, limits: Sequence[str]) -> Answer:
    floor, best = _best_floor(rows), scored[0]
    above = [row.label for row in scored if row.over_floor is not None and row.over_floor > 0]
    reasons = []
    if above:
        stand = "stands" if len(above) == 1 else "stand"
        reasons.append(
            f"On average {units.listed(above)} {stand} above the floor, but by less than the seeds can tell."
        )
    if not any(row.score.interval for row in scored if row.score):
        reasons.append("So few seeds cannot tell a score just under the floor from one just above it.")
    reasons.append(
        "A score that is reached without attention says nothing for attention. More steps, more data or "
        "longer histories may change that."
    )
    return Answer(
        verdict="floor",
        label=None,
        sentence=f"Take none of them: no mechanism clears the floor. {floor.label.capitalize()} reaches "
        f"{metric} {_score(floor)}, the best mechanism, {best.label}, {_score(best)}.",
        reasons=(*reasons, *limits),
    )


def _lead(whole: Sequence[Row], rows: Sequence[Row], metric: str, reasons: Sequence[str]) -> Answer:
    best = whole[0]
    assert best.score
    if len(whole) == 1:
        told = f"{best.label} alone clears the floor, with {metric} {_score(best)}"
    else:
        second = whole[1]
        told = f"{best.label} has the best {metric}, {_score(best)}, before {second.label}, {_score(second)}"
        if _score(best) == _score(second):
            told = f"{best.label} and {second.label} have the best {metric}, {_score(best)}"
    return Answer(
        verdict="lead",
        label=best.label,
        sentence=f"{told}; but {'one seed' if len(best.score.scores) == 1 else 'two seeds'} cannot tell a "
        "difference from chance. Run at least three before you decide.",
        reasons=(*_against_floor(best, rows, metric), *reasons),
    )


def _take(
    whole: Sequence[Row],
    rows: Sequence[Row],
    metric: str,
    curves: Sequence[Curve],
    comparison: Mapping[str, Any],
    limits: Sequence[str],
) -> Answer:
    best = next(row for row in whole if row.score and row.score.interval)
    equals = [row for row in whole if row is best or set(row.group) & set(best.group)]
    lower = [row for row in rows[rows.index(best) + 1 :] if row.group]
    others = [row.label for row in lower if not set(row.group) & set(best.group)]
    pick = _cheapest(equals)
    comparable = _machines(equals) == 1
    among = "the best" if rows.index(best) == _first(rows) else "the best of those that never failed"
    if len(equals) == 1:
        told = f"its {metric} of {_score(pick)} is {among}"
        told += f", better than {units.listed(others)} on the same seeds" if others else ""
    elif pick is best:
        rest = units.listed([row.label for row in equals if row is not pick])
        told = f"its {metric} of {_score(pick)} is {among}, though it cannot be told apart from {rest}"
        told += ", and it trains the fastest of them" if comparable else ""
    else:
        told = f"its {metric} of {_score(pick)} cannot be told apart from {among} "
        told += f"({best.label}, {_score(best)}), and it trains the fastest of those that cannot"
    return Answer(
        verdict="take",
        label=pick.label,
        sentence=f"Take {pick.label}: {told}.",
        reasons=(*_against_floor(pick, rows, metric), *_costs(pick, rows, curves, comparison), *limits),
    )


def _first(rows: Sequence[Row]) -> int:
    """The place of the mechanism with the best score."""
    return next(place for place, row in enumerate(rows) if row.kind == "mechanism" and row.score)


def _cheapest(equals: Sequence[Row]) -> Row:
    """Of rows equal in quality the one that trains fastest; the best where speeds cannot be compared."""
    speeds = {row.label: row.costs.events_per_second or 0.0 for row in equals if row.costs}
    if _machines(equals) != 1:
        return equals[0]
    return max(equals, key=lambda row: speeds.get(row.label, 0.0))


def _machines(rows: Sequence[Row]) -> int:
    return len({machine for row in rows if row.costs for machine in row.costs.machines})


def _against_floor(row: Row, rows: Sequence[Row], metric: str) -> list[str]:
    if row.over_floor is None or row.score is None:
        return ["There is no floor to compare with, so no score here is known to mean anything."]
    floor, where = _best_floor(rows), "" if row.score.interval else ", on these seeds"
    return [
        f"{row.label} is better than the best floor, {floor.label} with {metric} {_score(floor)}, "
        f"by {units.score(abs(row.over_floor))}{where}."
    ]


def _costs(
    row: Row, rows: Sequence[Row], curves: Sequence[Curve], comparison: Mapping[str, Any]
) -> list[str]:
    """What taking the row costs, beside softmax, here and at other lengths."""
    told = []
    if row.label != BASELINE and row.ratios is not None:
        parts = [
            _ratio("trains", row.ratios.events_per_second, "as fast as softmax"),
            _ratio("answers in", row.ratios.latency_ms, "its time"),
            _ratio("takes", row.ratios.training_peak_mb, "its memory in training"),
        ]
        if said := [part for part in parts if part]:
            told.append(f"At {comparison['length']:,} events it {units.listed(said)}.")
    elif row.label != BASELINE and any(other.label == BASELINE and other.costs for other in rows):
        told.append("Its runs and those of softmax are from different machines, so that no ratio is given.")
    return told + _lengths(row, curves)


def _ratio(verb: str, ratio: float | None, rest: str) -> str:
    return "" if ratio is None else f"{verb} {units.times(ratio)} {rest}"


def _lengths(row: Row, curves: Sequence[Curve]) -> list[str]:
    """From which length on the row is faster than fused softmax; for softmax, what else would be."""
    told = []
    for curve in curves:
        training = curve.scaling("forward_backward_ms")
        scaling = training or curve.scaling("forward_ms")
        if scaling is None or curve.label == BASELINE or row.label not in (curve.label, BASELINE):
            continue
        longest, crossover = curve.cells[-1].length, scaling.crossover
        if crossover is None:
            when = f"is not faster than fused softmax up to {longest:,} tokens"
        elif crossover.at_or_below and len(curve.cells) == 1:
            when = f"is faster than fused softmax at {longest:,} tokens"
        elif crossover.at_or_below:
            when = f"is faster than fused softmax from {crossover.length:,.0f} to {longest:,} tokens"
        else:
            from_here = units.significant(crossover.length, digits=2)
            when = f"is faster than fused softmax from about {from_here} tokens on"
        told.append(f"{curve.label} {when}{', in training' if training else ''}.")
    return told


def _limits(rows: Sequence[Row]) -> list[str]:
    """What the reader should hold against the answer."""
    told = []
    for row in rows:
        if row.kind == "mechanism" and row.failures:
            kinds = list(dict.fromkeys(failure.status for failure in row.failures))
            why = "" if kinds == ["failed"] else f" ({units.listed(kinds)})"
            told.append(f"{row.label}: {len(row.failures)} of {units.plural(row.asked, 'run')} failed{why}.")
        if row.stuck and row.kind == "mechanism":
            told.append(
                f"{row.label}: {row.stuck} of {units.plural(row.finished, 'run')} did not get above "
                "the majority."
            )
    if missing := sum(row.missing for row in rows):
        asked = sum(row.asked for row in rows if row.kind == "mechanism")
        told.append(
            f"{missing} of {units.plural(asked, 'training run')} {'is' if missing == 1 else 'are'} missing; "
            "start the same command again to do what is missing."
        )
    if _machines(rows) > 1:
        told.append("The runs are from different machines: their speeds are not compared.")
    return told


def _best_floor(rows: Sequence[Row]) -> Row:
    return next(row for row in rows if row.kind == "floor" and row.score)  # rows come best first


def _score(row: Row) -> str:
    assert row.score
    return units.spread(row.score.mean, row.score.deviation)
