"""Cost by length: each mechanism's time and memory beside fused softmax, and what follows from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from subquad.measure.scaling import MIN_LENGTHS, Crossover, crossover, exponent
from subquad.records import Record
from subquad.report.leaderboard import Failure, failure
from subquad.report.question import Entry, identity
from subquad.report.runs import fingerprint

QUANTITIES = {  # what they are called
    "forward_ms": "forward",
    "forward_backward_ms": "forward and backward",
    "peak_mb": "memory",
}
TIMED = {"forward_ms": "forward", "forward_backward_ms": "forward_backward"}  # fields of the records


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One mechanism at one length: medians, and those of the fused softmax timed in turns with it."""

    length: int
    values: Mapping[str, float]  # of the quantities that were measured; milliseconds, MB
    reference: Mapping[str, float]
    roofline: Mapping[str, float] = field(
        default_factory=dict
    )  # of times, where it was found: see measure.roofline
    peers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # other packages, by name


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What the cells of a mechanism say about one quantity."""

    exponent: float | None  # of the fitted power of length
    note: str  # why there is no exponent
    crossover: Crossover | None  # None: fused softmax is as good up to the longest length measured
    at_longest: float  # ratio to fused softmax at the longest length measured


@dataclass(frozen=True, kw_only=True)
class Curve:
    """All cells of a mechanism, shortest first."""

    label: str
    form: str
    cells: tuple[Cell, ...]
    failures: tuple[Failure, ...]
    failed_lengths: tuple[int, ...]
    machines: tuple[str, ...]

    def points(self, quantity: str, *, reference: bool = False) -> list[tuple[int, float]]:
        """(length, value) where the quantity was measured."""
        return [
            (cell.length, (cell.reference if reference else cell.values)[quantity])
            for cell in self.cells
            if quantity in cell.values
        ]

    def rooflines(self, quantity: str) -> list[tuple[int, float]]:
        """(length, the least time that the machine could take) where it was found."""
        return [(cell.length, cell.roofline[quantity]) for cell in self.cells if quantity in cell.roofline]

    def scaling(self, quantity: str) -> Scaling | None:
        """None where it was not measured, is too small to be seen, or was measured on several machines."""
        ours, theirs = self.points(quantity), self.points(quantity, reference=True)
        if len(self.machines) > 1 or not ours or not all(value > 0 for _, value in (*ours, *theirs)):
            return None
        lengths, values = zip(*ours, strict=True)
        reference = [value for _, value in theirs]
        return Scaling(
            exponent=exponent(lengths, values) if len(lengths) >= MIN_LENGTHS else None,
            note="" if len(lengths) >= MIN_LENGTHS else "needs three lengths",
            crossover=crossover(lengths, values, reference),
            at_longest=values[-1] / reference[-1],
        )


def part(cell: Cell, quantity: str) -> float | None:
    """The roofline over what was measured: 1 is as fast as the machine."""
    roofline, measured = cell.roofline.get(quantity), cell.values.get(quantity)
    return roofline / measured if roofline and measured else None


def curves(entries: Sequence[Entry], records: Sequence[Record]) -> list[Curve]:
    """The curve of each row that has been benched, in the order asked."""
    benches = [record for record in records if record["kind"] == "bench"]
    benched = []
    for entry in entries:
        mine = [record for record in benches if identity(record["spec"]["mechanism"]) == entry.identity]
        mine.sort(key=lambda record: record["spec"]["length"])
        done = [record for record in mine if record["status"] == "ok"]
        failed = [record for record in mine if record["status"] != "ok"]
        if not mine:
            continue
        curve = Curve(
            label=entry.label,
            form=entry.form,
            cells=tuple(map(_cell, done)),
            failures=tuple(failure(record, f"{record['spec']['length']:,} tokens") for record in failed),
            failed_lengths=tuple(record["spec"]["length"] for record in failed),
            machines=tuple(sorted({str(fingerprint(record)) for record in done})),
        )
        benched.append(curve)
    return benched


def references(benched: Sequence[Curve], quantity: str) -> dict[str, list[tuple[int, float]]]:
    """Fused softmax itself, by form: the median over the cells of each length."""
    lines = {}
    for form in dict.fromkeys(curve.form for curve in benched):
        values: dict[int, list[float]] = {}
        for curve in benched:
            if curve.form == form:
                for length, value in curve.points(quantity, reference=True):
                    values.setdefault(length, []).append(value)
        if values:
            lines[form] = [(length, median(values[length])) for length in sorted(values)]
    return lines


def _cell(record: Record) -> Cell:
    measured = record["measured"]
    timed = {name: measured[field] for name, field in TIMED.items() if field in measured}
    peers: dict[str, dict[str, float]] = {}
    for name, each in timed.items():
        for peer, timing in each.get("peers_ms", {}).items():
            peers.setdefault(peer, {})[name] = timing["median"]
    return Cell(
        length=record["spec"]["length"],
        values={
            **{name: each["ms"]["median"] for name, each in timed.items()},
            "peak_mb": measured["memory"]["mb"],
        },
        reference={
            **{name: each["reference_ms"]["median"] for name, each in timed.items()},
            "peak_mb": measured["memory"]["reference_mb"],
        },
        roofline={name: each["roofline_ms"] for name, each in timed.items() if each.get("roofline_ms")},
        peers=peers,
    )
