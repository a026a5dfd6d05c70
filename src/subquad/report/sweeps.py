"""Rows of one mechanism that differ in one number alone: what turning this knob does."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from subquad.notation import bare
from subquad.report.leaderboard import BoardRow


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """`labels`: of the rows, in the order of the knob's values."""

    mechanism: str
    knob: str
    values: tuple[float, ...]
    labels: tuple[str, ...]


def sweeps(rows: Sequence[BoardRow]) -> list[Sweep]:
    """One for each knob and each setting of the others."""
    found: dict[tuple[str, str, str], dict[float, str]] = {}
    for row in rows:
        for knob, value in row.options.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                mechanism = bare(row.label)
                rest = {name: other for name, other in row.options.items() if name != knob}
                setting = json.dumps([row.form, rest], sort_keys=True, default=str)
                found.setdefault((mechanism, knob, setting), {})[value] = row.label
    return [
        Sweep(
            mechanism=mechanism,
            knob=knob,
            values=tuple(sorted(labels)),
            labels=tuple(labels[value] for value in sorted(labels)),
        )
        for (mechanism, knob, _), labels in found.items()
        if len(labels) > 1
    ]
