"""All tasks of a comparison at a glance: what each mechanism reached on each, and what that comes to.

Scores of different tasks have no common measure, and so two are made. The normalised score of a row is how
far it came from the majority's score, which is 0, to a perfect one, which is 1; a metric without a perfect
score has none. The rank of a row is its place among the mechanisms of a task, where those that cannot be told
apart share the mean of their places, as Demšar (2006, "Statistical comparisons of classifiers over multiple
data sets") takes it. Both are averaged over the tasks that every mechanism can take, which are named: means
over different tasks are not compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from subquad.report import formats
from subquad.report.answer import Answer, Verdict
from subquad.report.leaderboard import BASELINES, BoardRow, Standing
from subquad.report.question import Metric, Question
from subquad.report.statistics import MIN_SEEDS, Summary

FLAWLESS = {"mae": 0.0}  # the perfect score of errors; that of a metric which is better when higher is 1
MIN_AVERAGED = 2  # tasks: less is no average
BEST_MARK = "among the best: no other is told apart above it"
OF_THESE_MODELS = ", as these trained models go: fewer than three seeds say nothing of other seeds"


@dataclass(frozen=True, kw_only=True)
class TaskColumn:
    """One task of the overview.

    `baseline`, `baseline_score`: the best baseline; "" and None where there is none.
    `not_ranked`: why the mean rank and the average leave the task out; "" where they do not.
    `not_averaged`: the same of the average alone.
    """

    label: str
    metric: str
    higher_is_better: bool
    baseline: str
    baseline_score: float | None
    not_ranked: str
    not_averaged: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """A mechanism on one task.

    `best`: whether no other is told apart above it, and it is not below the baseline.
    `beside_baseline`: None where there is no baseline.
    `normalised`: 0 the majority's score, 1 a perfect one; None where the metric has no perfect score.
    `note`: why there is no score or one of fewer seeds; "" where there is all.
    """

    score: Summary | None
    best: bool
    beside_baseline: Standing | None
    rank: float | None
    normalised: float | None
    note: str


@dataclass(frozen=True, kw_only=True)
class OverviewRow:
    """A mechanism over all tasks: `places` in their order; means are None where a score is missing."""

    label: str
    places: tuple[Place, ...]
    mean_rank: float | None
    average: float | None


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The mechanisms, best mean rank first, over several tasks."""

    tasks: tuple[TaskColumn, ...]
    rows: tuple[OverviewRow, ...]
    few_seeds: bool  # whether what is told apart is of these trained models alone

    @property
    def ranked(self) -> list[str]:
        """The tasks that mean ranks are over."""
        return [task.label for task in self.tasks if not task.not_ranked]

    @property
    def averaged(self) -> list[str]:
        """The tasks that averages are over; none where there are too few."""
        labels = [task.label for task in self.tasks if not (task.not_ranked or task.not_averaged)]
        return labels if len(labels) >= MIN_AVERAGED else []

    @property
    def notes(self) -> dict[str, str]:
        """What the means are over, and what they leave out."""
        notes = {}
        if self.averaged:
            notes["Average"] = (
                f"over {formats.listed(self.averaged)}, of normalised scores: the majority's is 0 and a "
                "perfect one 1; of an error, it is the part of the majority's that is gone."
            )
        if self.ranked:
            notes["Mean rank"] = (
                f"over {formats.listed(self.ranked)}: the place among the mechanisms; those that cannot be "
                "told apart share the mean of theirs."
            )
        left_out = [
            f"{task.label} of both means ({task.not_ranked})"
            if task.not_ranked
            else f"{task.label} of the average ({task.not_averaged})"
            for task in self.tasks
            if task.not_ranked or task.not_averaged
        ]
        return {**notes, **({"Left out": f"{'; '.join(left_out)}."} if left_out else {})}


def overview(labels: Sequence[str], tasks: Sequence[tuple[Question, Sequence[BoardRow]]]) -> Overview | None:
    """Of the mechanisms called so, in the order asked; None where there is one task only."""
    if len(tasks) < 2:
        return None
    columns = tuple(_column(question, rows) for question, rows in tasks)
    places = [_places(question, rows) for question, rows in tasks]
    shown = Overview(
        tasks=columns, rows=(), few_seeds=any(question.seeds < MIN_SEEDS for question, _ in tasks)
    )
    rows = [
        OverviewRow(
            label=label,
            places=(mine := tuple(each[label] for each in places)),
            mean_rank=_mean([place.rank for place in _of(mine, columns, shown.ranked)]),
            average=_mean([place.normalised for place in _of(mine, columns, shown.averaged)]),
        )
        for label in labels
    ]
    rows.sort(key=lambda row: (_last(row.mean_rank), -(row.average or 0.0)))
    return Overview(tasks=columns, rows=tuple(rows), few_seeds=shown.few_seeds)


def answer_by_task(answers: Mapping[str, Answer], shown: Overview | None) -> Answer:
    """One sentence for several tasks, from the answer on each; that of a task alone is its own."""
    if shown is None:
        return next(iter(answers.values()))
    sentence = "; ".join(f"on {task} {_clause(each)}" for task, each in answers.items())
    labels = {each.label for each in answers.values()}
    undecided: list[Verdict] = [each.verdict for each in answers.values() if each.verdict != "take"]
    return Answer(
        verdict=undecided[0] if undecided else "take",
        label=labels.pop() if len(labels) == 1 else None,
        sentence=f"{sentence[:1].upper()}{sentence[1:]}.",
        reasons=tuple(_over_all(shown)),
    )


def _clause(answer: Answer) -> str:
    """What an answer says behind "on recall"."""
    return {
        "take": f"take {answer.label}",
        "lead": f"{answer.label} leads, on too few seeds to decide",
        "baseline": "none clears the baseline",
        "open": "it cannot be told whether any clears the baseline",
        "nothing": "there is no answer",
    }[answer.verdict]


def _over_all(shown: Overview) -> list[str]:
    """What can be said of mechanisms over all tasks."""
    notes = []
    cleared = [
        place for place in range(len(shown.tasks)) if any(row.places[place].best for row in shown.rows)
    ]
    every = [row.label for row in shown.rows if all(row.places[place].best for place in cleared)]
    if len(cleared) > 1:
        among = f"{formats.few(every)} {'is' if len(every) == 1 else 'are'}" if every else "No mechanism is"
        labels = [shown.tasks[place].label for place in cleared]
        notes.append(f"{among} among the best on {'both ' * (len(labels) == 2)}{formats.listed(labels)}.")
    first = [f"{row.label} {row.mean_rank:.1f}" for row in shown.rows if row.mean_rank is not None]
    if len(shown.ranked) > 1 and len(first) > 1:
        notes.append(f"Mean rank over {formats.listed(shown.ranked)}: {formats.few(first)}.")
    return notes


def _column(question: Question, rows: Sequence[BoardRow]) -> TaskColumn:
    best = next((row for row in rows if row.kind == "baseline" and row.score), None)
    refused = list(question.refusals)
    can = "cannot take it"
    return TaskColumn(
        label=question.label,
        metric=question.metric.label,
        higher_is_better=question.metric.higher_is_better,
        baseline=best.label if best else "",
        baseline_score=best.score.mean if best and best.score else None,
        not_ranked=f"{formats.few(refused)} {can}" if refused else "",
        not_averaged=_not_averaged(question.metric, rows),
    )


def _not_averaged(metric: Metric, rows: Sequence[BoardRow]) -> str:
    if _flawless(metric) is None:
        return f"no {metric.label} is perfect"
    return "" if _majority(rows) is not None else "it has no majority to count from"


def _places(question: Question, rows: Sequence[BoardRow]) -> dict[str, Place]:
    """Of each mechanism, by its label."""
    mechanisms = [row for row in rows if row.kind == "mechanism"]
    scored = [row for row in mechanisms if row.score]
    floor, flawless = _majority(rows), _flawless(question.metric)
    places = {}
    for row in mechanisms:
        above, alike = _others(row, scored, question.metric) if row.score else (0, 0)
        normalised = None
        if row.score and floor is not None and flawless is not None and floor != flawless:
            normalised = (row.score.mean - floor) / (flawless - floor)
        places[row.label] = Place(
            score=row.score,
            best=row.score is not None and not above and row.beside_baseline != "below",
            beside_baseline=row.beside_baseline,
            rank=1 + above + alike / 2 if row.score else None,
            normalised=normalised,
            note=_note(row),
        )
    return places


def _others(row: BoardRow, scored: Sequence[BoardRow], metric: Metric) -> tuple[int, int]:
    """How many are told apart above a row, and how many are not told apart from it."""
    sign = 1 if metric.higher_is_better else -1
    differences = [row.against.get(other.label) for other in scored if other is not row]
    apart = [difference for difference in differences if difference and difference.significant]
    return sum(sign * difference.value < 0 for difference in apart), len(differences) - len(apart)


def _note(row: BoardRow) -> str:
    if row.refusal:
        return f"cannot: {row.refusal}"
    if row.failures:
        kinds = formats.listed(list(dict.fromkeys(failure.status for failure in row.failures)))
        return f"{kinds}, {len(row.failures)} of {formats.plural(row.planned, 'run')}"
    return f"{row.missing} of {formats.plural(row.planned, 'run')} missing" if row.missing else ""


def _majority(rows: Sequence[BoardRow]) -> float | None:
    return next((row.score.mean for row in rows if row.label == BASELINES["majority"] and row.score), None)


def _flawless(metric: Metric) -> float | None:
    return 1.0 if metric.higher_is_better else FLAWLESS.get(metric.name)


def _of(places: Sequence[Place], columns: Sequence[TaskColumn], labels: Sequence[str]) -> list[Place]:
    """Those on the tasks called so."""
    return [place for place, column in zip(places, columns, strict=True) if column.label in labels]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _last(rank: float | None) -> float:
    return math.inf if rank is None else rank
