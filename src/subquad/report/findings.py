"""What a comparison found: its records as typed data, worked out once.

Page, terminal and `--json` are views of it: they take every figure from here, and compute none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subquad.records import Record, Store
from subquad.report import formats
from subquad.report.answer import Answer, answer
from subquad.report.budgets import Budgets, budgets
from subquad.report.cost import Curve, curves
from subquad.report.fairness import Equality, equalities
from subquad.report.leaderboard import BoardRow, leaderboard
from subquad.report.learning import LearningCurve, learning_curves
from subquad.report.literature import Publication, published
from subquad.report.parts import PartScores, by_parts
from subquad.report.question import Question, question_of
from subquad.report.runs import FailedRun, Machine, failed_runs, machines, versions
from subquad.report.styles import Style, styles_of


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that is known of a comparison.

    `comparison`: what comparison.json holds.
    `records`: those that exist, in the order of the keys.
    `missing`: runs without a record.
    `rows`: mechanisms and baselines, best first, with scores, costs and failures.
    `cost_curves`: time and memory by length, of what was benched.
    `learning`: learning curves by the label of their row.
    `budgets`: what the rows reach within parts of the budget; None: no run was validated.
    `parts`: scores by what answers differ in, such as the length of a sequence.
    `publications`: published results for this task; they come from elsewhere, and nothing is set beside them.
    `styles`: how each mechanism is drawn, by label.
    """

    comparison: Mapping[str, Any]
    records: Sequence[Record]
    missing: int
    question: Question
    rows: Sequence[BoardRow]
    cost_curves: Sequence[Curve]
    learning: Mapping[str, Sequence[LearningCurve]]
    budgets: Budgets | None
    parts: Sequence[PartScores]
    answer: Answer
    equalities: Sequence[Equality]
    failures: Sequence[FailedRun]
    machines: Sequence[Machine]
    versions: Mapping[str, str]
    publications: Sequence[Publication]
    styles: Mapping[str, Style]

    @property
    def incomplete(self) -> str:
        """How many runs are missing, and what to do."""
        runs = formats.plural(len(self.records) + self.missing, "run")
        return (
            f"{self.missing:,} of {runs} {'is' if self.missing == 1 else 'are'} missing: the same command, "
            "started again, does what is missing."
        )


def findings_of(comparison: Mapping[str, Any], records: Sequence[Record]) -> Findings:
    """What the records of a comparison say, which is a `recorded.Comparison`."""
    question = question_of(comparison)
    rows, cost_curves = leaderboard(question, records), curves(question.entries, records)
    learning = learning_curves(question, records)
    return Findings(
        comparison=comparison,
        records=records,
        missing=sum(map(len, comparison["keys"].values())) - len(records),
        question=question,
        rows=rows,
        cost_curves=cost_curves,
        learning=learning,
        budgets=budgets(question, records, learning),
        parts=by_parts(question, rows, records),
        answer=answer(question, rows, cost_curves),
        equalities=equalities(question, records),
        failures=failed_runs(question, records),
        machines=machines(records),
        versions=versions(records),
        publications=published(question),
        styles=styles_of([entry.label for entry in question.entries]),
    )


def findings_in(folder: Path, key: str | None = None) -> Findings:
    """Of the comparison of that key in a folder, or of the latest.

    Raises `ValueError`, naming the file, where there is no comparison or a file is damaged.
    """
    store = Store(folder)
    comparison = store.get_comparison(key)
    return findings_of(comparison, store.runs(comparison))
