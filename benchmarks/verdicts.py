"""What the measurements say of the targets. Plain data in, plain data out: nothing here runs anything."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.claims import Claim
from benchmarks.targets import FUSED, GATE, OWN_FLOAT32, QUICK, ROWS, Row, Target

Outcome = Literal["met", "short", "missed", "not run"]
PATTERN_PART = 0.6  # of 1 / (the part of all pairs that is seen)
Results = Mapping[str, Any]  # JSON: what `benchmarks.suite.run` gives


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A rival's figure over ours, between the quotients of the quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of one target: at one thread, by processor time, and at two, by wall clock."""

    row: Row
    target: Target
    aim: float | None  # the target's ratio; None: it hangs on a density that was not measured
    ours: float | None  # milliseconds or MB, at one thread
    theirs: float | None
    one: Ratio | None
    two: Ratio | None
    reason: str  # why there is no ratio

    @property
    def outcome(self) -> Outcome:
        if self.one is None or self.aim is None:
            return "not run"
        if self.one.median >= self.aim:
            return "met"
        return "short" if self.one.median >= GATE * self.aim else "missed"


def selected(row: Row, *, quick: bool) -> tuple[int, ...]:
    """The lengths that are run."""
    short = tuple(length for length in row.lengths if length <= QUICK or row.operation == "step")
    return (short or row.lengths[:1]) if quick else row.lengths


def verdicts(results: Results) -> list[Verdict]:
    """One for each target of the rows and lengths that were asked for."""
    return [
        verdict(row, target, results)
        for row in ROWS
        if row.name in results["rows"]
        for target in row.targets
        if target.length in selected(row, quick=results["quick"])
    ]


def verdict(row: Row, target: Target, results: Results) -> Verdict:
    if target.figure == "memory":
        return of_memory(row, target, results)
    measured, reason = {}, ""
    for threads, by_length in results["rows"][row.name].items():
        cell = by_length.get(str(target.length), by_length)
        rival = f"{target.rival}, {target.tier}" if target.rival == OWN_FLOAT32 else target.rival
        times = cell.get("ms", {})
        if target.tier in times and rival in times:
            measured[threads] = (times[target.tier], times[rival], cell)
        elif threads == "1":
            reason = cell.get("failed") or cell.get("missing", {}).get(rival) or "no kernels here"
    one = measured.get("1")
    return Verdict(
        row=row,
        target=target,
        aim=aim(target, one[2] if one else {}),
        ours=one[0]["median"] if one else None,
        theirs=one[1]["median"] if one else None,
        one=quotient(*one[:2]) if one else None,
        two=quotient(*measured["2"][:2]) if "2" in measured else None,
        reason=reason,
    )


def aim(target: Target, cell: Mapping[str, Any]) -> float | None:
    if target.ratio is not None:
        return target.ratio
    return PATTERN_PART / cell["seen"] if cell.get("seen") else None


def quotient(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Ratio:
    return Ratio(
        median=theirs["median"] / ours["median"],
        low=theirs["low"] / ours["high"],
        high=theirs["high"] / ours["low"],
    )


def of_memory(row: Row, target: Target, results: Results) -> Verdict:
    cells = results["memory"].get(row.name, {}).get(str(target.length), {})
    ours, theirs = (cells.get(who, {}) for who in (target.tier, target.rival))
    both = "mb" in ours and "mb" in theirs
    ratio = theirs["mb"] / max(ours["mb"], 0.01) if both else None
    return Verdict(
        row=row,
        target=target,
        aim=target.ratio,
        ours=ours.get("mb"),
        theirs=theirs.get("mb"),
        one=None if ratio is None else Ratio(median=ratio, low=ratio, high=ratio),
        two=None,
        reason="" if both else ours.get("failed") or theirs.get("failed") or "not measured",
    )


@dataclass(frozen=True, kw_only=True)
class OfRoofline:
    """How much of the machine's rates a tier reaches, at the longest length that was run, on one thread.

    `limit`: the ratio to the fused softmax of whoever were at the roofline.
    """

    row: Row
    tier: str
    length: int
    part: float
    aim: float | None
    limit: float | None


def rooflines(results: Results) -> Iterator[OfRoofline]:
    for row in ROWS:
        by_length = results["rows"].get(row.name, {}).get("1", {})
        cells = {int(length): cell for length, cell in by_length.items() if length.isdecimal()}
        for tier, least in row.roofline.items():
            reached = {n: cell for n, cell in cells.items() if cell["roofline_ms"] and tier in cell["ms"]}
            if reached:
                length, cell = max(reached.items())
                roofline, fused = cell["roofline_ms"], cell["ms"].get(FUSED)
                yield OfRoofline(
                    row=row,
                    tier=tier,
                    length=length,
                    part=roofline / cell["ms"][tier]["median"],
                    aim=least,
                    limit=fused["median"] / roofline if fused else None,
                )


def claims(results: Results) -> list[Claim]:
    """Those that were measured, and in place of those that were not, why."""
    return [
        claim
        for name, result in results["claims"].items()
        for claim in (
            [Claim(**fields) for fields in result["claims"]]
            if "claims" in result
            else [Claim(name=name, claimed="", found=result["failed"], met=False, gate=True)]
        )
    ]


def failed(judged: Sequence[Verdict], claimed: Sequence[Claim]) -> list[str]:
    """What makes the command fail: a target missed by more than the gate allows, a gated claim not met.

    A rival that is not installed is no failure; a row of ours that does not run is.
    """
    missed = [
        f"{v.row.name}: {v.one.median:.3g} times over {v.target.rival} at {v.target.length:,} tokens "
        f"({v.target.tier}, {v.target.figure}); the gate is {GATE * v.aim:.3g}"
        for v in judged
        if v.outcome == "missed" and v.one and v.aim
    ]
    broken = {
        f"{v.row.name} did not run: {v.reason}"
        for v in judged
        if v.outcome == "not run" and v.target.rival in (FUSED, OWN_FLOAT32) and v.reason != "no kernels here"
    }
    unmet = [f"{claim.name}: {claim.found}" for claim in claimed if claim.gate and not claim.met]
    return [*missed, *sorted(broken), *unmet]
