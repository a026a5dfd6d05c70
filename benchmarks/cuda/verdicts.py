"""What a run on a card says of the targets. Plain data in, plain data out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.cuda import plan
from benchmarks.cuda.plan import Race
from benchmarks.cuda.targets import WORKS, Target, Work
from benchmarks.targets import GATE
from benchmarks.verdicts import Outcome, Ratio, quotient

Results = Mapping[str, Any]  # JSON: what `benchmarks.cuda.suite.run` gives
NOT_MEASURED = "not measured yet"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of one target; `ours`: the fastest of our backends. Milliseconds."""

    work: Work
    target: Target
    ours: str | None
    ours_ms: float | None
    theirs_ms: float | None
    ratio: Ratio | None
    reason: str  # why there is none

    @property
    def outcome(self) -> Outcome:
        if self.ratio is None:
            return "not run"
        if self.ratio.median >= self.target.ratio:
            return "met"
        return "short" if self.ratio.median >= GATE * self.target.ratio else "missed"


def verdicts(results: Results | None) -> list[Verdict]:
    """One for each target, whatever was run."""
    rows = {} if results is None else results["rows"]
    return [verdict(work, target, rows) for work in WORKS for target in work.targets]


def verdict(work: Work, target: Target, rows: Mapping[str, Any]) -> Verdict:
    race = Race(work=work.name, passes=target.passes, length=target.length)
    row = rows.get(race.name, {"unmeasured": NOT_MEASURED})
    times = row.get("ms", {})
    ours, theirs = fastest(work, times), times.get(target.rival)
    missing = row.get("missing", {})
    reason = row.get("failed") or row.get("unmeasured") or missing.get(target.rival, "")
    if ours is None and not reason:
        reason = "; ".join(f"{name}: {missing[name]}" for name in work.backends if name in missing)
    return Verdict(
        work=work,
        target=target,
        ours=ours,
        ours_ms=times[ours]["median"] if ours else None,
        theirs_ms=theirs["median"] if theirs else None,
        ratio=quotient(times[ours], theirs) if ours and theirs else None,
        reason=reason,
    )


def fastest(work: Work, times: Mapping[str, Any]) -> str | None:
    run = [name for name in work.backends if name in times]
    return min(run, key=lambda name: times[name]["median"], default=None)


def broken(results: Results) -> Iterator[str]:
    """What of ours is wrong, or did not run to its end; no refusal, and nothing of others."""
    for name, row in results["rows"].items():
        if "failed" in row:
            yield f"{name}: {row['failed']}"
        for what in row.get("wrong", ()):
            yield f"{name}: {what}"
        if "missing" in row:
            own, unsound = plan.find(row["work"]).backends, ("it refuses", "wrong", "not checked")
            yield from (
                f"{name}, {who}: {why}"
                for who, why in row["missing"].items()
                if who in own and not why.startswith(unsound)
            )


def failed(results: Results) -> list[str]:
    """What makes the command fail: what is broken, and targets missed by more than the gate allows."""
    missed = [
        f"{v.work.title}, {v.target.passes}: {v.ratio.median:.3g} times over {v.target.rival} at "
        f"{v.target.length:,} tokens; the gate is {GATE * v.target.ratio:.3g}"
        for v in verdicts(results)
        if v.outcome == "missed" and v.ratio
    ]
    return [*broken(results), *([] if results["rehearsal"] else missed)]


def proven(results: Results) -> bool:
    """Whether Triton's kernels were checked, of all works, and are right."""
    own = [row for row in results["rows"].values() if row["kind"] == "Check" and row["backend"] == "triton"]
    unsure = any(row.get("wrong") or "failed" in row or "unmeasured" in row for row in own)
    return any("errors" in row for row in own) and not unsure and not results["only"]
