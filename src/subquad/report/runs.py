"""What the runs themselves tell: which failed, on which machines they ran, and with which versions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subquad.records import Record
from subquad.report.question import Entry, identity


@dataclass(frozen=True, kw_only=True)
class FailedRun:
    """A run that ended without a result.

    `label`: what it is called: "reformer, seed 1", "dense, 4,096 tokens".
    """

    label: str
    status: str
    reason: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine, and how many runs it did.

    `description`: what it says of itself, as records have it.
    """

    runs: int
    description: Mapping[str, Any]


def fingerprint(record: Record) -> str | None:
    """That of the machine a record was made on; None where the run died before it could say."""
    return record.get("machine", {}).get("fingerprint")


def failed_runs(entries: Sequence[Entry], records: Sequence[Record]) -> list[FailedRun]:
    """Those of the records; `entries` has what their mechanisms are called."""
    return [
        FailedRun(
            label=_label(entries, record),
            status=record["status"],
            reason=record.get("reason", ""),
            seconds=record.get("seconds", 0.0),
        )
        for record in records
        if record["status"] != "ok"
    ]


def machines(records: Sequence[Record]) -> list[Machine]:
    """The machines that did the runs."""
    known: dict[str, list[Record]] = {}
    for record in records:
        if mark := fingerprint(record):
            known.setdefault(mark, []).append(record)
    return [Machine(runs=len(mine), description=mine[-1]["machine"]) for mine in known.values()]


def versions(records: Sequence[Record]) -> dict[str, str]:
    """The versions of packages over all runs; where runs differ, all of them."""
    known: dict[str, dict[str, None]] = {}
    for record in records:
        for package, version in record.get("versions", {}).items():
            known.setdefault(package, {})[version] = None
    return {package: ", ".join(several) for package, several in known.items()}


def _label(entries: Sequence[Entry], record: Record) -> str:
    spec = record["spec"]
    if record["kind"] == "baseline":
        return f"baseline {spec['baseline']}, seed {spec['seed']}"
    mechanism = spec["mechanism"]
    labels = {entry.identity: entry.label for entry in entries}
    where = f"seed {spec['seed']}" if record["kind"] == "fit" else f"{spec['length']:,} tokens"
    return f"{labels.get(identity(mechanism), mechanism['attention'])}, {where}"
