"""What runs reach on validation within parts of the budget, and after how many examples they take off."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from subquad.records import Record
from subquad.report.learning import LearningCurve
from subquad.report.question import Question
from subquad.report.runs import fits_of
from subquad.report.scores import scores
from subquad.report.statistics import SeedScores
from subquad.report.success import Chance, chance_of

SHARES = (0.25, 0.5, 1.0)  # of the budget


@dataclass(frozen=True, kw_only=True)
class BudgetRow:
    """A row of the table.

    `scores`: for each budget those of the seeds on validation.
    `takes_off`: of each seed the examples after which validation is first above chance, None: not within the
        budget. Empty: it is not known what chance is.
    """

    label: str
    scores: tuple[tuple[float, ...], ...]
    takes_off: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """`examples`: a quarter, half and the whole of what a run sees, as near as validation was measured."""

    examples: tuple[int, ...]
    rows: tuple[BudgetRow, ...]


def budgets(
    question: Question, records: Sequence[Record], learning: Mapping[str, Sequence[LearningCurve]]
) -> Budgets | None:
    """None where no run was validated."""
    places = [place for curves in learning.values() for curve in curves for place in curve.validated]
    if not places:
        return None
    nearest = [min(places, key=lambda place: abs(place - share * max(places))) for share in SHARES]
    examples, chance = tuple(dict.fromkeys(nearest)), chance_of(question, records)
    rows = []
    for entry in question.entries:
        curves = learning.get(entry.label, [])
        seeds = scores(fits_of(entry, records), question.metric.name)
        rows.append(
            BudgetRow(
                label=entry.label,
                scores=tuple(
                    tuple(curve.validated[place] for curve in curves if place in curve.validated)
                    for place in examples
                ),
                takes_off=tuple(_takes_off(curves, seeds, chance)) if chance else (),
            )
        )
    return Budgets(examples=examples, rows=tuple(row for row in rows if any(row.scores)))


def _takes_off(curves: Sequence[LearningCurve], seeds: SeedScores, chance: Chance) -> Iterator[int | None]:
    for curve in curves:
        margin = chance.margin_on_validation(seeds, curve.seed)
        if margin is not None:
            above = (place for place, value in curve.validated.items() if chance.clears(value, margin))
            yield next(above, None)
