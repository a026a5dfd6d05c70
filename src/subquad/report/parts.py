"""What each row reached on each kind of answers, such as those of long sequences."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from subquad.records import Record
from subquad.report.leaderboard import BASELINES, BoardRow
from subquad.report.question import Question, identity

Breakdown = Mapping[str, Mapping[str, Mapping[str, Any]]]  # as records have it

RANGE = re.compile(r"[\d,]+( to [\d,]+)?")  # what a part is called that is of numbers


@dataclass(frozen=True, kw_only=True)
class Part:
    """`answers`: of the test split, or what else the metric is over, such as bytes."""

    name: str
    answers: int

    @property
    def first(self) -> str:
        """Of a range of numbers the lowest."""
        return self.name.partition(" ")[0]


@dataclass(frozen=True, kw_only=True)
class PartScores:
    """The scores by what answers differ in.

    `title`: what that is: "length".
    `scores`: of each row that has any, by its label: of each part the scores of the seeds, none where a part
        has no such metric. Best rows first, as on the leaderboard.
    `baseline`: the best baseline among them, by its label.
    """

    title: str
    parts: tuple[Part, ...]
    scores: Mapping[str, tuple[tuple[float, ...], ...]]
    baseline: str | None

    @property
    def numbers(self) -> bool:
        """Whether the parts are numbers, or ranges of them, in order."""
        return all(RANGE.fullmatch(part.name) for part in self.parts)

    def means(self, label: str) -> list[float | None]:
        """Over the seeds, of each part."""
        return [fmean(seeds) if seeds else None for seeds in self.scores[label]]


def by_parts(question: Question, rows: Sequence[BoardRow], records: Sequence[Record]) -> list[PartScores]:
    """One for each thing in which answers differ, where that has at least two parts."""
    breakdowns = _breakdowns(question, records)
    titles: dict[str, dict[str, Part]] = {}
    for mine in breakdowns.values():
        for title, parts in (pair for breakdown in mine for pair in breakdown.items()):
            for name, part in parts.items():
                titles.setdefault(title, {}).setdefault(name, Part(name=name, answers=part["count"]))
    found = []
    for title, parts in titles.items():
        having = [row for row in rows if any(title in each for each in breakdowns.get(row.label, []))]
        scores = {row.label: _scores(breakdowns[row.label], title, list(parts)) for row in having}
        baseline = next((row.label for row in having if row.kind == "baseline"), None)
        if len(parts) > 1:
            found.append(
                PartScores(title=title, parts=tuple(parts.values()), scores=scores, baseline=baseline)
            )
    return found


def _breakdowns(question: Question, records: Sequence[Record]) -> dict[str, list[Breakdown]]:
    """Those of each row's runs, by its label."""
    labels = {entry.identity: entry.label for entry in question.entries}
    found: dict[str, list[Breakdown]] = {}
    for record in records:
        if breakdown := record["result"].get("breakdown"):
            spec = record["spec"]
            baseline: str | None = spec.get("baseline")
            label = BASELINES.get(baseline, baseline) if baseline else labels[identity(spec["mechanism"])]
            found.setdefault(label, []).append(breakdown)
    return found


def _scores(runs: Sequence[Breakdown], title: str, names: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    """Of each part those of the runs that have one."""
    parts = [[run[title][name]["value"] for run in runs if name in run.get(title, {})] for name in names]
    return tuple(tuple(value for value in values if value is not None) for values in parts)
