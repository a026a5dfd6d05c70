"""What a comparison found: its records as typed data, worked out once.

Page, terminal and `--json` are views of it: they take every figure from here, and compute none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from subquad.records import Record, Store, run_keys
from subquad.report import formats
from subquad.report.answer import Answer, answer, answer_by_task
from subquad.report.cost import Curve, curves
from subquad.report.fairness import Equality, equalities
from subquad.report.leaderboard import BoardRow, leaderboard
from subquad.report.learning import LearningCurve, learning_curves
from subquad.report.literature import Publication, published
from subquad.report.question import Entry, Question, benched_entries, question_of, settings_of
from subquad.report.runs import FailedRun, Machine, failed_runs, machines, versions
from subquad.report.styles import Style, styles_of


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that is known of one task of a comparison.

    `comparison`: the task's settings and those that it shares, as one of `question.settings_of`.
    `records`: those that exist, in the order of the keys.
    `missing`: runs without a record.
    `rows`: mechanisms and baselines, best first, with scores, costs and failures.
    `cost_curves`: time and memory by length, of what was benched.
    `learning`: learning curves by the label of their row.
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
    answer: Answer
    equalities: Sequence[Equality]
    failures: Sequence[FailedRun]
    machines: Sequence[Machine]
    versions: Mapping[str, str]
    publications: Sequence[Publication]
    styles: Mapping[str, Style]

    @property
    def incomplete(self) -> str:
        return incomplete(self.missing, len(self.records))


@dataclass(frozen=True, kw_only=True)
class ComparisonFindings:
    """All that is known of a comparison: what was found on each task, and what the tasks share.

    `comparison`: what comparison.json holds.
    `records`: those that exist, of all tasks and of the bench.
    `missing`: runs without a record.
    `cost_curves`: time and memory by length, of every mechanism in every form that a task asks for.
    """

    comparison: Mapping[str, Any]
    records: Sequence[Record]
    missing: int
    tasks: tuple[Findings, ...]
    answer: Answer
    cost_curves: Sequence[Curve]
    failures: Sequence[FailedRun]
    machines: Sequence[Machine]
    versions: Mapping[str, str]
    styles: Mapping[str, Style]

    @property
    def title(self) -> str:
        if len(self.tasks) == 1:
            return self.tasks[0].question.title
        return formats.listed([task.question.label for task in self.tasks])

    @property
    def incomplete(self) -> str:
        return incomplete(self.missing, len(self.records))


def incomplete(missing: int, done: int) -> str:
    """How many runs are missing, and what to do."""
    return (
        f"{missing:,} of {formats.plural(done + missing, 'run')} {'is' if missing == 1 else 'are'} missing: "
        "the same command, started again, does what is missing."
    )


def findings_of(comparison: Mapping[str, Any], records: Sequence[Record]) -> Findings:
    """What the records of one task say, whose settings are one of `question.settings_of`."""
    question = question_of(comparison)
    rows, cost_curves = leaderboard(question, records), curves(question.entries, records)
    return Findings(
        comparison=comparison,
        records=records,
        missing=sum(map(len, comparison["keys"].values())) - len(records),
        question=question,
        rows=rows,
        cost_curves=cost_curves,
        learning=learning_curves(question, records),
        answer=answer(question, rows, cost_curves),
        equalities=equalities(question, records),
        failures=failed_runs(question.entries, records),
        machines=machines(records),
        versions=versions(records),
        publications=published(question),
        styles=styles_of(_labels(comparison["attention"], question.entries, question.refusals)),
    )


def comparison_findings(comparison: Mapping[str, Any], records: Sequence[Record]) -> ComparisonFindings:
    """What the records of a comparison say, which is a `recorded.Comparison`."""
    tasks = []
    for settings in settings_of(comparison):
        known = set(chain.from_iterable(settings["keys"].values()))
        tasks.append(findings_of(settings, [record for record in records if record["key"] in known]))
    entries = benched_entries(comparison["rows"])
    return ComparisonFindings(
        comparison=comparison,
        records=records,
        missing=sum(map(len, run_keys(comparison).values())) - len(records),
        tasks=tuple(tasks),
        answer=answer_by_task({task.question.label: task.answer for task in tasks}),
        cost_curves=curves(entries, records),
        failures=_failures(tasks, failed_runs(entries, [run for run in records if run["kind"] == "bench"])),
        machines=machines(records),
        versions=versions(records),
        styles=styles_of(_labels(comparison["attention"], entries)),
    )


def _labels(asked: Sequence[str], entries: Sequence[Entry], others: Iterable[str] = ()) -> list[str]:
    """What mechanisms are called, in the order asked, so that all tasks draw them alike."""
    return list(dict.fromkeys((*asked, *(entry.label for entry in entries), *others)))


def _failures(tasks: Sequence[Findings], benches: Sequence[FailedRun]) -> list[FailedRun]:
    """Of all tasks, whose names stand before those of the runs where there are several, and of the bench."""
    if len(tasks) == 1:
        return list(tasks[0].failures)
    trained = [
        replace(run, label=f"{task.question.label}: {run.label}")
        for task in tasks
        for run in failed_runs(
            task.question.entries, [record for record in task.records if record["kind"] != "bench"]
        )
    ]
    return [*trained, *benches]


def findings_in(folder: Path, key: str | None = None) -> ComparisonFindings:
    """Of the comparison of that key in a folder, or of the latest.

    Raises `ValueError`, naming the file, where there is no comparison or a file is damaged.
    """
    store = Store(folder)
    comparison = store.get_comparison(key)
    return comparison_findings(comparison, store.runs(comparison))
