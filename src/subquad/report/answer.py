"""The answer in a sentence: which mechanism to take on this data and machine, and why; or why none.

Only what the runs carry is said: what the test examples and the seeds tell apart, and how much of a
difference they could. Fewer than three seeds carry no difference between mechanisms, a score that cannot
be told from the baseline carries no merit, and figures of two machines carry no ratio.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from subquad.report import formats, reasons
from subquad.report.cost import Curve
from subquad.report.leaderboard import BoardRow
from subquad.report.question import Question
from subquad.report.statistics import MIN_SEEDS, Difference

# "lead": too few seeds to say "take"; "baseline": take none; "open": not told apart from the baseline
Verdict = Literal["take", "lead", "baseline", "open", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    verdict: Verdict
    label: str | None  # the mechanism; None: none
    sentence: str
    reasons: tuple[str, ...]  # what it rests on, and what limits it


def answer(question: Question, rows: Sequence[BoardRow], curves: Sequence[Curve]) -> Answer:
    """The answer, from the rows of `leaderboard` and the curves of `cost.curves`."""
    scored = [row for row in rows if row.kind == "mechanism" and row.score is not None]
    limits = reasons.limits(question, rows)
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
    metric = question.metric.label
    if all(row.beside_baseline == "below" for row in scored):
        return _none(scored, rows, metric, limits)
    cleared = [row for row in scored if row.beside_baseline in ("above", None)]
    if not cleared:
        return _open(scored, rows, metric, limits)
    whole = [row for row in cleared if not row.failures and not row.missing] or cleared
    able = [row for row in whole if row.score and len(row.score.scores) >= MIN_SEEDS]
    best = able[0] if able else whole[0]
    costs = reasons.costs(best, rows, curves, question)
    if not able:
        return _lead(whole, rows, metric, [*costs, *limits])
    return _take(able, rows, metric, curves, question, limits)


def _tells(difference: Difference) -> str:
    """How large a difference these examples and seeds can tell: "3 seeds tell differences above … apart"."""
    if not difference.least:
        return "they answer the test examples alike"
    least = formats.significant(difference.least, digits=2)
    return f"{_judges(difference)} differences above about {least} apart"


def _judges(difference: Difference) -> str:
    """What a comparison rests on, with its verb."""
    seeds = formats.plural(difference.seeds, "seed")
    if difference.over == "seeds":
        return f"{seeds} tell"
    examples = formats.plural(difference.examples, "example")
    if difference.over == "examples":
        return f"the test set of {examples} tells"
    return f"{formats.plural(difference.examples, 'test example')} and {seeds} tell"


def _none(scored: Sequence[BoardRow], rows: Sequence[BoardRow], metric: str, limits: Sequence[str]) -> Answer:
    baseline, best = reasons.best_baseline(rows), scored[0]
    difference = best.against[baseline.label]
    seeds = _seeds(best)
    few = f"{seeds} {'says' if seeds == 'one seed' else 'say'} nothing of other seeds, which may do better."
    notes = [few.capitalize()] if difference.seeds < MIN_SEEDS else []
    notes.append(
        "A score that is reached without attention says nothing for attention. More steps, more data or "
        "longer sequences may change that."
    )
    return Answer(
        verdict="baseline",
        label=None,
        sentence=f"Take none of them: no mechanism clears the baseline. {baseline.label.capitalize()} "
        f"reaches {metric} {_score(baseline)}, the best mechanism, {best.label}, {_score(best)}, and "
        f"{_judges(difference)} them apart.",
        reasons=(*notes, *limits),
    )


def _open(scored: Sequence[BoardRow], rows: Sequence[BoardRow], metric: str, limits: Sequence[str]) -> Answer:
    """No mechanism is above the baseline for certain, and not all are below it."""
    baseline = reasons.best_baseline(rows)
    best = next(row for row in scored if row.beside_baseline != "below")
    difference = best.against.get(baseline.label)
    why = _tells(difference) if difference else f"{_seeds(best)} cannot tell a difference from chance"
    below = [row.label for row in scored if row.beside_baseline == "below"]
    notes = []
    if below:
        notes.append(f"{formats.few(below)} can be told apart from it, and {_stand(below)} below it.")
    notes.append("More seeds, and more examples to test on, tell smaller differences apart.")
    return Answer(
        verdict="open",
        label=None,
        sentence=f"It cannot be told whether any mechanism clears the baseline: {baseline.label} reaches "
        f"{metric} {_score(baseline)}, {best.label} {_score(best)}, and {why}.",
        reasons=(*notes, *limits),
    )


def _lead(whole: Sequence[BoardRow], rows: Sequence[BoardRow], metric: str, why: Sequence[str]) -> Answer:
    best, others = whole[0], whole[1:]
    seeds = _seeds(best)
    limit = f"{seeds} cannot tell a difference from chance"
    claim = f"{best.label} has the best {metric}, {_score(best)}"
    if not others:
        claim = f"{best.label} alone clears the baseline, with {metric} {_score(best)}"
    else:
        second = others[0]
        difference = best.against.get(second.label)
        claim += f", before {second.label}, {_score(second)}"
        if _score(best) == _score(second):
            claim = f"{best.label} and {second.label} have the best {metric}, {_score(best)}"
        if difference and not difference.significant:
            limit = f"{_tells(difference)}, so that these two cannot be told apart, and {limit}"
    alike = [
        row.label
        for row in others
        if (difference := best.against.get(row.label)) and not difference.significant
    ]
    if len(alike) > 1:
        why = [f"On these examples {best.label} cannot be told apart from {formats.few(alike)}.", *why]
    return Answer(
        verdict="lead",
        label=best.label,
        sentence=f"{claim}; but {limit}. Run at least three before you decide.",
        reasons=(*_against_baseline(best, rows, metric), *why),
    )


def _take(
    able: Sequence[BoardRow],
    rows: Sequence[BoardRow],
    metric: str,
    curves: Sequence[Curve],
    question: Question,
    limits: Sequence[str],
) -> Answer:
    best = able[0]
    lower = [row for row in rows[rows.index(best) + 1 :] if row.label in best.against and row.group]
    others = [row.label for row in lower if best.against[row.label].significant]
    equals = [row for row in able if row.label not in others]
    pick = reasons.cheapest(equals)
    comparable = reasons.machines(equals) == 1
    first = next(row for row in rows if row.kind == "mechanism" and row.score)
    among = "the best" if best is first else "the best of those that never failed"
    if len(equals) == 1:
        claim = f"its {metric} of {_score(pick)} is {among}"
        claim += f", better than {formats.few(others)} {_alike(best.against[others[0]])}" if others else ""
    elif pick is best:
        rest = formats.few([row.label for row in equals if row is not pick])
        claim = f"its {metric} of {_score(pick)} is {among}, though it cannot be told apart from {rest}"
        claim += ", and it trains the fastest of them" if comparable else ""
    else:
        claim = f"its {metric} of {_score(pick)} cannot be told apart from {among} "
        claim += f"({best.label}, {_score(best)}), and it trains the fastest of those that cannot"
    nearest = next(iter([*(row.label for row in equals if row is not best), *others]), "")
    return Answer(
        verdict="take",
        label=pick.label,
        sentence=f"Take {pick.label}: {claim}.",
        reasons=(
            *_resolution(pick, nearest if pick is best else best.label),
            *_against_baseline(pick, rows, metric),
            *reasons.costs(pick, rows, curves, question),
            *limits,
        ),
    )


def _resolution(row: BoardRow, other: str) -> list[str]:
    """Which difference from the other row could be told, and which there is."""
    if other not in row.against:
        return []
    difference = row.against[other]
    if not difference.least:
        return [f"{row.label} and {other} answer the test examples alike."]
    apart = formats.significant(abs(difference.value), digits=2)
    return [f"Between {row.label} and {other}, {_tells(difference)}; theirs is {apart}."]


def _alike(difference: Difference) -> str:
    return "on the same seeds" if difference.over == "seeds" else "on the same examples and seeds"


def _against_baseline(row: BoardRow, rows: Sequence[BoardRow], metric: str) -> list[str]:
    if row.over_baseline is None:
        return ["There is no baseline to compare with, so no score here is known to mean anything."]
    baseline = reasons.best_baseline(rows)
    where = "" if row.score and len(row.score.scores) >= MIN_SEEDS else ", on these seeds"
    return [
        f"{row.label} is better than the best baseline, {baseline.label} with {metric} {_score(baseline)}, "
        f"by {formats.score(abs(row.over_baseline))}{where}."
    ]


def _stand(labels: Sequence[str]) -> str:
    return "stands" if len(labels) == 1 else "stand"


def _seeds(row: BoardRow) -> str:
    assert row.score
    return {1: "one seed", 2: "two seeds"}.get(len(row.score.scores), "so few seeds")


def _score(row: BoardRow) -> str:
    assert row.score
    return formats.mean_deviation(row.score.mean, row.score.deviation)
