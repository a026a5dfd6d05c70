"""What a fair comparison holds equal: what the records show of it, and what the code makes so."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subquad.records import Record
from subquad.report import formats
from subquad.report.question import Identity, Question, identity

EQUAL: dict[str, tuple[str, ...]] = {  # what fits must share, and the fields of their specs that say so
    "data and splits": ("fingerprint",),
    "length, {units}": ("length",),
    "batch": ("batch", "accumulate"),
    "steps": ("steps", "validate"),
    "learning rate, warm-up": ("learning_rate", "warmup"),
    "weight decay, clipping, dropout": ("weight_decay", "clip", "dropout"),
    "skeleton: width, depth, heads": ("dim", "depth", "heads", "mlp_ratio"),
    "positions": ("positions",),
    "precision": ("precision",),
    "device, threads": ("device", "threads"),
}
BY_CONSTRUCTION = {
    "data order": "of a seed the same for every mechanism",
    "initial weights": "outside the mechanism drawn from the seed and the weight's name, the same for all",
    "optimiser": "AdamW, linear warm-up and cosine",
    "choice": "the step that is best on validation; the test split is touched once",
}


@dataclass(frozen=True, kw_only=True)
class Equality:
    """Something that a fair comparison holds equal.

    `evidence`: how that is known: "equal in 9 runs", "by construction", "not known"; or "differs".
    """

    what: str
    value: str
    evidence: str

    @property
    def broken(self) -> bool:
        return self.evidence == "differs"


def equalities(question: Question, records: Sequence[Record]) -> list[Equality]:
    """What the fits' records say was equal, and what the code makes so; nothing where there is no fit."""
    fits = [record for record in records if record["kind"] == "fit"]
    if not fits:
        return []
    checked = [
        _equality(what.format(units=question.units), fits, _fields(fields))
        for what, fields in {**EQUAL, **_unlisted(fits)}.items()
    ]
    done = [record for record in fits if record["status"] == "ok"]
    checked.append(_equality("budget: examples seen", done, _examples))
    checked.append(_same_seeds(fits))
    return checked + [
        Equality(what=what, value=value, evidence="by construction")
        for what, value in BY_CONSTRUCTION.items()
    ]


def _unlisted(fits: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """Options of model and training that `EQUAL` does not name, each by itself."""
    listed = {name for names in EQUAL.values() for name in names}
    specs = [record["spec"] for record in fits]
    options = dict.fromkeys(name for spec in specs for name in (*spec["model"], *spec["training"]))
    return {name.replace("_", " "): (name,) for name in options if name not in listed}


def _same_seeds(fits: Sequence[Record]) -> Equality:
    seeds: dict[Identity, set[int]] = {}
    for record in fits:
        seeds.setdefault(identity(record["spec"]["mechanism"]), set()).add(record["spec"]["seed"])
    sets = sorted({", ".join(map(str, sorted(each))) for each in seeds.values()})
    evidence = f"equal for {len(seeds)} mechanisms" if len(sets) == 1 else "differs"
    return Equality(what="seeds", value=" | ".join(sets), evidence=evidence)


def _equality(what: str, records: Sequence[Record], value: Callable[[Record], str | None]) -> Equality:
    values = dict.fromkeys(each for record in records if (each := value(record)) is not None)
    evidence = f"equal in {formats.plural(len(records), 'run')}" if values else "not known"
    return Equality(
        what=what,
        value=" | ".join(values) or formats.ABSENT,
        evidence="differs" if len(values) > 1 else evidence,
    )


def _fields(names: Sequence[str]) -> Callable[[Record], str | None]:
    def value(record: Record) -> str | None:
        spec = _leaves(record["spec"])
        if len(names) == 1:
            return str(spec[names[0]]) if names[0] in spec else None
        return ", ".join(f"{name.replace('_', ' ')} {spec[name]}" for name in names if name in spec) or None

    return value


def _leaves(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a spec and of the specs within it, by their own names."""
    leaves: dict[str, Any] = {}
    for name, value in spec.items():
        leaves |= _leaves(value) if isinstance(value, Mapping) and name != "options" else {name: value}
    return leaves


def _examples(record: Record) -> str | None:
    curve = record["result"].get("curve")
    return formats.count(curve[-1]["examples"]) if curve else None
