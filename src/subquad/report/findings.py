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

ASKED = ("title", "task", "metric", "higher_is_better", "length", "seeds", "rows", "keys")
RECORDED = ("key", "kind", "spec", "status", "result", "measured")


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


def findings(folder: Path) -> Findings:
    """Raises `ValueError`, naming the file, where there is no comparison or a file is broken."""
    store = Store(folder)
    comparison = store.get_comparison()
    _complete(comparison, ASKED, folder / "comparison.json")
    keys = [key for kind in comparison["keys"].values() for key in kind]
    records = []
    for key in keys:
        if (record := store.get(key)) is not None:
            _complete(record, RECORDED, store.record_path(key))
            records.append(record)
    return worked_out(comparison, records)


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


def _complete(document: Mapping[str, Any], names: Sequence[str], path: Path) -> None:
    if absent := [repr(name) for name in names if name not in document]:
        raise ValueError(
            f"{str(path)!r} has no {units.listed(absent, last='or')}; delete it and start the command again"
        )
