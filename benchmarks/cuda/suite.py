"""A run: kernels compiled, every number checked, then times; into one JSON document, saved after each row.

Compilations and checks go on side by side, times alone. A row that a crash or a time limit ends is noted with
its reason, and those behind it go on in another process; so is a row for which the budget leaves no time.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from benchmarks.cuda import plan, process
from benchmarks.cuda.plan import CARD, Row, Scale
from benchmarks.cuda.targets import Work
from benchmarks.cuda.worker import Message, Part
from benchmarks.revision import commit
from subquad.measure.machine import versions
from subquad.ops.triton import availability

BUDGET_S = {True: 450.0, False: 6 * 3600.0}  # of the whole run, by `quick`: within eight minutes
CHECKED_BY = 0.55  # of the budget: what has not been checked by then is not timed
LEAST_S = 5.0  # with less than that left no process is started
SLOTS = 12  # processes that compile or check at once
PACKAGES = (
    *("subquad", "torch", "triton", "fla-core", "performer-pytorch", "nystrom-attention", "local-attention"),
    *("linformer", "reformer-pytorch"),
)
IDENTITY = ("quick", "rehearsal", "card", "capability", "driver", "versions", "commit")  # of one run
OUT_OF_TIME, UNCHECKED = "no time was left", "not checked"

T = TypeVar("T", bound=Row)
Results = dict[str, Any]
Without = Mapping[str, Mapping[str, str]]  # by work, why some of its backends are not timed
NOTHING: Without = MappingProxyType({})
Say = Callable[[str], object]
Save = Callable[[Results], object]


@dataclass(kw_only=True)
class Run:
    """What is known so far, and what it takes to know more."""

    results: Results
    scale: Scale
    say: Say
    save: Save
    part: type[Part]
    deadline: float
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, row: Row, result: Mapping[str, Any]) -> None:
        with self.lock:
            self.results["rows"][row.name] = {**plan.to_json(row), **result}
            self.say(f"{row.name}: {told(result)}")
            self.save(self.results)

    def lacking(self, rows: Iterable[T]) -> list[T]:
        """Those that an earlier run has not measured, or not all of."""
        return [row for row in rows if not ended(self.results["rows"].get(row.name, {"failed": ""}))]

    def side_by_side(self, parts: Iterable[Sequence[Row]], deadline: float) -> None:
        with ThreadPoolExecutor(min(SLOTS, os.cpu_count() or 1)) as pool:
            list(pool.map(lambda rows: self.carry_out(self.lacking(rows), deadline), parts))

    def carry_out(self, rows: Sequence[Row], deadline: float, without: Without = NOTHING) -> None:
        """The rows one after the other, in as few processes as live."""
        while rows:
            left = deadline - time.time()
            if left < LEAST_S:
                for row in rows:
                    self.add(row, {"unmeasured": OUT_OF_TIME})
                return
            rows = self.in_one_process(rows, deadline, without)

    def in_one_process(self, rows: Sequence[Row], deadline: float, without: Without) -> Sequence[Row]:
        """Until it ends; those that are left."""
        left = {row.name: row for row in rows}
        begun: list[str] = []

        def hear(message: Message) -> None:
            begun.append(message["row"])
            if "result" in message and (row := left.pop(message["row"], None)):
                self.add(row, message["result"])

        part = self.part(rows=rows, scale=self.scale, deadline=deadline - LEAST_S, without=without)
        try:
            reason = process.run(part, timeout=deadline - time.time(), hear=hear)
        except process.OutOfTime:
            reason = ""
        if not reason:
            for row in left.values():
                self.add(row, {"unmeasured": OUT_OF_TIME})
            return []
        culprit = begun[-1] if begun else next(iter(left), "")
        if row := left.pop(culprit, None):
            self.add(row, {"failed": reason})
        return list(left.values())


def run(
    only: Sequence[str],
    *,
    quick: bool,
    scale: Scale,
    say: Say,
    save: Save,
    before: Mapping[str, Any] = MappingProxyType({}),
    budget: float | None = None,
    part: type[Part] = Part,
) -> Results:
    """Measure the works that a name in `only` begins, or all if it is empty.

    before: what an earlier run saved; where that was by the same code on the same card, this one goes on.
    budget: seconds of the whole run.
    part: what carries out rows.
    """
    start = time.time()
    results: Results = {**identity(quick=quick, scale=scale), "only": list(only), "rows": {}, "seconds": 0}
    known = not results["commit"].endswith("-dirty")
    if before and known and all(before.get(name) == results[name] for name in IDENTITY):
        results = {**before, "only": list(only), "finished": False}
    spent = results["seconds"]

    def save_so_far(results: Results) -> None:
        save(results | {"seconds": round(spent + time.time() - start)})

    for name in IDENTITY:
        say(f"{name}: {results[name]}")
    seconds = BUDGET_S[quick] if budget is None else budget
    going = Run(results=results, scale=scale, say=say, save=save_so_far, part=part, deadline=start + seconds)
    works = plan.selected(only)
    checks = {check.name: check for work in works for check in plan.checks(work, quick=quick)}.values()
    half = start + CHECKED_BY * seconds
    shares = min(SLOTS, os.cpu_count() or 1)
    if any(check.backend == "triton" for check in checks) and has_kernels(scale):
        going.side_by_side(([row] for row in plan.compilations(quick=quick, shares=shares)), half)
    going.side_by_side((list(own) for _, own in groupby(checks, lambda check: check.work)), half)
    without = {work.name: unsound(work, results, quick=quick) for work in works}
    for own in plan.parts(works):
        rows = going.lacking(race for work in own for race in plan.races(work, quick=quick))
        idle = [row for row in rows if without[row.work].keys() == set(plan.find(row.work).backends)]
        for row in idle:
            reasons = (f"{name}: {reason}" for name, reason in without[row.work].items())
            going.add(row, {"unmeasured": "; ".join(reasons)})
        going.carry_out([row for row in rows if row not in idle], going.deadline, without)
    return results | {"seconds": round(spent + time.time() - start), "finished": True}


def ended(result: Mapping[str, Any]) -> bool:
    """Whether nothing is left to measure of a row."""
    unchecked = any(reason.startswith(UNCHECKED) for reason in result.get("missing", {}).values())
    return not (unchecked or "failed" in result or "unmeasured" in result)


def unsound(work: Work, results: Mapping[str, Any], *, quick: bool) -> dict[str, str]:
    """Why some of our backends are not timed, by name: a check found them wrong, refused, or did not end.

    In bfloat16, which is what is timed.
    """
    reasons = {}
    for check in plan.checks(work, quick=quick):
        found = results["rows"].get(check.name, {"unmeasured": "it has not been checked"})
        if check.dtype == "bfloat16" and check.width == CARD.width and (reason := why_unsound(found)):
            reasons[check.backend] = reason
    return reasons


def why_unsound(result: Mapping[str, Any]) -> str | None:
    if "refused" in result:
        return f"it refuses: {result['refused']}"
    if reason := result.get("failed") or result.get("unmeasured"):
        return f"{UNCHECKED}: {reason}"
    return f"wrong: {'; '.join(result['wrong'][:3])}" if result["wrong"] else None


def told(result: Mapping[str, Any]) -> str:
    """A row in a line."""
    if "ms" in result:
        times = {name: f"{timing['median']:.3g} ms" for name, timing in result["ms"].items()}
        return ", ".join(f"{name} {text}" for name, text in (times | result["missing"]).items())
    if "kernels" in result:
        return f"{result['kernels']} kernels"
    if "errors" in result:
        return "; ".join(result["wrong"]) or f"right, within {max(result['errors'].values()):.1e}"
    return next(iter(result.values()))


def has_kernels(scale: Scale) -> bool:
    """Whether Triton has any for this card."""
    if scale.device != "cuda":
        return False
    verdict = availability.of_capability(torch.cuda.get_device_capability())
    return verdict.reason is None or verdict.on_request


def identity(*, quick: bool, scale: Scale) -> Results:
    """Where and of what these figures are."""
    on_card = scale.device == "cuda"
    return {
        "quick": quick,
        "rehearsal": not on_card,
        "card": torch.cuda.get_device_name() if on_card else "none",
        "capability": list(torch.cuda.get_device_capability()) if on_card else [],
        "driver": driver() if on_card else "none",
        "versions": versions(PACKAGES),
        "commit": commit(),
    }


def driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"
