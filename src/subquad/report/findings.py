"""What a comparison found: read from its folder, and worked out before anything is written down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subquad.records import Record, Store
from subquad.report import units
from subquad.report.answer import Answer, answer
from subquad.report.cost import Curve, curves
from subquad.report.leaderboard import Row, leaderboard
from subquad.report.looks import Look, looks


@dataclass(frozen=True, kw_only=True)
class Findings:
    comparison: Mapping[str, Any]  # what comparison.json holds
    records: Sequence[Record]  # those that exist, in the order of the keys
    missing: int  # runs without a record
    rows: Sequence[Row]
    curves: Sequence[Curve]
    answer: Answer
    looks: Mapping[str, Look]

    @property
    def incomplete(self) -> str:
        """How many runs are missing, and what to do."""
        runs = units.plural(len(self.records) + self.missing, "run")
        return (
            f"{self.missing:,} of {runs} {'is' if self.missing == 1 else 'are'} missing: the same command, "
            "started again, does what is missing."
        )


def findings(folder: Path, key: str | None = None) -> Findings:
    """Of the comparison of that key, or of the latest.

    Raises `ValueError`, naming the file, where there is no comparison or a file is damaged.
    """
    store = Store(folder)
    comparison = store.get_comparison(key)
    return worked_out(comparison, store.runs(comparison))


def worked_out(comparison: Mapping[str, Any], records: Sequence[Record]) -> Findings:
    """What the records of a comparison say: page, terminal and `--json` take every figure from here."""
    rows, found = leaderboard(comparison, records), curves(comparison, records)
    return Findings(
        comparison=comparison,
        records=records,
        missing=sum(map(len, comparison["keys"].values())) - len(records),
        rows=rows,
        curves=found,
        answer=answer(comparison, rows, found),
        looks=looks([row["label"] for row in comparison["rows"]]),
    )
