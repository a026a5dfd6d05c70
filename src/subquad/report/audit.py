"""What the comparison rests on: what was equal for all, what was not, what failed, and how to do it again."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subquad.records import Record
from subquad.report import units
from subquad.report.leaderboard import Row, identity, machine
from subquad.report.table import Cell, Table

ALIKE: dict[str, tuple[str, ...]] = {  # what fits must share, and the fields of their specs that say so
    "data and splits": ("data",),
    "length, events": ("length",),
    "batch": ("batch", "accumulate"),
    "steps": ("steps", "validate"),
    "learning rate, warm-up": ("learning_rate", "warmup"),
    "weight decay, clipping, dropout": ("weight_decay", "clip", "dropout"),
    "skeleton: width, depth, heads": ("dim", "depth", "heads"),
    "positions": ("positions",),
    "precision": ("precision",),
    "device, threads": ("device", "threads"),
}
REPEATED = (  # options of the command, as comparison.json names them
    *("length", "seeds", "dim", "depth", "heads", "positions", "dropout"),
    *("steps", "batch", "accumulate", "learning_rate", "weight_decay", "clip", "precision", "device"),
)
BY_CONSTRUCTION = {
    "data order": "of a seed the same for every mechanism",
    "initial weights": "outside the mechanism drawn from the seed and the weight's name, the same for all",
    "optimiser": "AdamW, linear warm-up and cosine",
    "choice": "the step that is best on validation; the test split is touched once",
}


@dataclass(frozen=True, kw_only=True)
class Equality:
    """Something that a fair comparison holds equal."""

    what: str
    value: str
    found: str  # "equal in 9 runs", "by construction", "differs"

    @property
    def broken(self) -> bool:
        return self.found == "differs"


def equalities(records: Sequence[Record]) -> list[Equality]:
    """What the fits' records say was equal, and what the code makes so."""
    fits = [record for record in records if record["kind"] == "fit"]
    checked = [_equality(what, fits, _fields(fields)) for what, fields in ALIKE.items()]
    done = [record for record in fits if record["status"] == "ok"]
    checked.append(_equality("budget: examples seen", done, _examples))
    seeds: dict[tuple[str, str, bool], set[int]] = {}
    for record in fits:
        seeds.setdefault(identity(record["spec"]), set()).add(record["spec"]["seed"])
    sets = sorted({", ".join(map(str, sorted(found))) for found in seeds.values()})
    if sets:
        found = f"equal for {len(seeds)} mechanisms" if len(sets) == 1 else "differs"
        checked.append(Equality(what="seeds", value=" | ".join(sets), found=found))
    made = [
        Equality(what=what, value=value, found="by construction") for what, value in BY_CONSTRUCTION.items()
    ]
    return [*checked, *made]


def parameters(rows: Sequence[Row]) -> Table:
    found: list[tuple[Cell, ...]] = []
    for row in rows:
        if row.parameters is None:
            continue
        beyond = row.parameters.beyond_reference
        found.append(
            (
                row.label,
                row.parameters.total,
                row.parameters.attention,
                row.parameters.grows_with_length,
                None if beyond is None else 100 * beyond,
                "over 10 % more" if row.parameters.marked else "",
            )
        )
    columns = ("mechanism", "in all", "in attention", "growing with length", "beyond softmax, %", "mark")
    shown = len(columns) if any(row[-1] for row in found) else len(columns) - 1
    return Table(
        caption="Of the whole model", columns=columns[:shown], rows=tuple(row[:shown] for row in found)
    )


def failures(records: Sequence[Record], labels: Mapping[str, str]) -> Table:
    """Every run that ended without a result; `labels` says what a run's key is called."""
    rows = [
        (
            labels.get(record["key"], record["key"]),
            record["status"],
            record.get("reason") or "",
            units.duration(record.get("seconds", 0.0)),
        )
        for record in records
        if record["status"] != "ok"
    ]
    return Table(
        caption="Runs without a result", columns=("run", "status", "reason", "after"), rows=tuple(rows)
    )


def run_labels(comparison: Mapping[str, Any], records: Sequence[Record]) -> dict[str, str]:
    """What each run is called: mechanism or baseline, and seed or length."""
    names = {identity(row): row["label"] for row in comparison["rows"]}
    labels = {}
    for record in records:
        spec = record["spec"]
        if record["kind"] == "baseline":
            labels[record["key"]] = f"baseline {spec['baseline']}, seed {spec['seed']}"
            continue
        name = names.get(identity(spec), spec["attention"])
        where = f"seed {spec['seed']}" if record["kind"] == "fit" else f"{spec['length']:,} tokens"
        labels[record["key"]] = f"{name}, {where}"
    return labels


def options(rows: Sequence[Row]) -> Table:
    """Every option of every mechanism, defaults too."""
    found = tuple(
        (
            row.label,
            row.form or "",
            ", ".join(f"{name}={value}" for name, value in row.options.items()) or "none",
        )
        for row in rows
        if row.kind == "mechanism"
    )
    return Table(caption="Every option with its value", columns=("mechanism", "form", "options"), rows=found)


def machines(records: Sequence[Record]) -> list[tuple[int, dict[str, Any]]]:
    """The machines that did the runs, and how many runs each."""
    found: dict[str | None, tuple[int, dict[str, Any]]] = {}
    for record in records:
        mark = machine(record)
        if mark is not None:
            runs, _ = found.get(mark, (0, {}))
            found[mark] = runs + 1, record["machine"]
    return list(found.values())


def versions(records: Sequence[Record]) -> dict[str, str]:
    """The versions of packages over all runs; where runs differ, all of them."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for package, version in record.get("versions", {}).items():
            found.setdefault(package, {})[version] = None
    return {package: ", ".join(known) for package, known in found.items()}


def command(comparison: Mapping[str, Any]) -> str:
    """What to type to do the same again."""
    words = ["subquad", "compare", comparison["task"]]
    if comparison["target"] in comparison.get("targets", ()):
        words += ["--target", comparison["target"]]
    for row in comparison["rows"]:
        words += ["--attention", row["label"]]
    for name in REPEATED:
        if name in comparison:
            words += [f"--{name.replace('_', '-')}", str(comparison[name])]
    if comparison.get("bench") is False:
        words.append("--no-bench")
    elif comparison.get("lengths"):
        words += ["--lengths", ",".join(map(str, comparison["lengths"]))]
    return shlex.join(words)


def _equality(what: str, records: Sequence[Record], read: Callable[[Record], str | None]) -> Equality:
    values = dict.fromkeys(value for record in records if (value := read(record)) is not None)
    if len(values) > 1:
        return Equality(what=what, value=" | ".join(values), found="differs")
    found = f"equal in {units.plural(len(records), 'run')}"
    return Equality(what=what, value=next(iter(values), units.ABSENT), found=found if values else "not known")


def _fields(names: Sequence[str]) -> Callable[[Record], str | None]:
    def read(record: Record) -> str | None:
        spec = record["spec"]
        if len(names) == 1:
            return str(spec[names[0]]) if names[0] in spec else None
        return ", ".join(f"{name.replace('_', ' ')} {spec[name]}" for name in names if name in spec) or None

    return read


def _examples(record: Record) -> str | None:
    curve = record["result"].get("curve")
    return units.count(curve[-1]["examples"]) if curve else None
