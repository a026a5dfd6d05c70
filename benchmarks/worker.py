"""One measurement in a process of its own: a spec that an executor runs, and whose result is validated.

A process's memory and speed depend on what it has done before; a crash ends only itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from benchmarks import claims, correctness, rooflines, subjects
from benchmarks.targets import ROWS, Row
from subquad.documents import validated
from subquad.executors import Local, Tell
from subquad.measure.memory import peak_memory
from subquad.measure.roofline import Rates, rates
from subquad.measure.timing import Timing, interleaved
from subquad.records import Record, Store, key

WARMUP = 64  # tokens that are run before memory is measured, so that libraries are loaded
ONE_CALL = 1e-9  # seconds of warming up, which is at least a call


class Cell(TypedDict):
    """All who take part, at one length and with one number of threads."""

    ms: dict[str, Timing]
    missing: dict[str, str]  # why others do not take part
    roofline_ms: float | None
    rates: Rates
    seen: float | None  # part of all pairs of query and key, where a target hangs on it


class Race(TypedDict):
    threads: dict[str, dict[str, Cell]]  # by number of threads, then by length


class Memory(TypedDict):
    mb: float
    method: Literal["resident", "counted", "cuda"]


class Claims(TypedDict):
    claims: list[claims.Claim]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is measured.

    measure: "race", "memory", or a kind of claim.
    options: of the function of that name.
    threads: of the process; a race goes through several numbers of them, up to this one.
    """

    kind: ClassVar[str] = "benchmark"
    version: ClassVar[int] = 1
    timed: ClassVar[bool] = True

    measure: str
    options: Mapping[str, Any]
    threads: int = 1

    @property
    def key(self) -> str:
        return key(self.kind, self.version, self.to_json())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Job":
        return cls(**fields)

    def run(self, store: Store, tell: Tell) -> dict[str, Any]:
        torch.manual_seed(0)
        own = {"race": race, "memory": memory}.get(self.measure)
        result = own(**self.options) if own else claims.measure(self.measure, **self.options)
        return {"result": result}

    def check(self, record: Record) -> None:
        if record["status"] == "ok":
            kind = {"race": Race, "memory": Memory}.get(self.measure, Claims)
            validated(kind, record["result"])


def run(job: Job, *, timeout: float) -> dict[str, Any]:
    """The job's result; {"failed": why} where there is none."""
    record = Local(timeout=timeout).run(job, Store(Path()), lambda event: None)
    return record["result"] if record["status"] == "ok" else {"failed": record["reason"]}


def race(
    name: str, threads: Sequence[int], lengths: Sequence[int], seconds: float, limit: float, compiled: bool
) -> dict[str, Any]:  # a `Race`
    """Times of all who take part in a row, by threads and length, after their numbers were found right."""
    row = find(name)
    correctness.require_right(row)
    entered = {length: enter(row, length, compiled=compiled) for length in lengths}
    results = {}
    for count in threads:
        torch.set_num_threads(count)
        warmup = 0 if count == threads[0] else ONE_CALL  # compiled peers are compiled again for other threads
        times = partial(interleaved, repeats=5, seconds=seconds, limit=limit, warmup=warmup)
        results[str(count)] = {
            str(length): measured(row, length, *who, times) for length, who in entered.items()
        }
    return {"threads": results}


def enter(row: Row, length: int, *, compiled: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Who takes part and has been called once, by name, and why others do not."""
    calls = subjects.calls(row, length, compiled=compiled)
    missing = {name: call.reason for name, call in calls.items() if isinstance(call, subjects.Missing)}
    ready = {name: call for name, call in calls.items() if not isinstance(call, subjects.Missing)}
    for name in list(ready):
        try:
            if name in subjects.PEERS and row.operation != "step" and not subjects.PEERS[name].compiled:
                correctness.require_peer_right(row, name)
            ready[name]()
        except Exception as error:  # another package's, whatever it raises: it is left out, and told
            if name not in subjects.PEERS:
                raise
            missing[name] = f"{type(error).__name__}: {str(error)[:120]}"
            del ready[name]
    return ready, missing


def measured(
    row: Row, length: int, ready: dict[str, Any], missing: dict[str, str], times: Callable[..., Any]
) -> dict[str, Any]:  # a `Cell`
    """Times at one length, and the roofline of the machine beside them."""
    clock = "cpu" if torch.get_num_threads() == 1 else "wall"
    timings = times(ready, clock=clock)
    ours = subjects.mechanism(row, length)
    rates_here = rates(seconds=0.5, clock=clock)
    roofline = 1e3 * rates_here.seconds(work) if (work := rooflines.work(row, ours, length)) else None
    if subjects.NO_ATTENTION in timings:
        roofline = timings[subjects.NO_ATTENTION].median
    return {
        "ms": {name: asdict(timing) for name, timing in timings.items()},
        "missing": missing,
        "roofline_ms": roofline,
        "rates": asdict(rates_here),
        "seen": rooflines.density(ours, length) if needs_density(row) else None,
    }


def find(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def needs_density(row: Row) -> bool:
    return any(target.ratio is None for target in row.targets)


def memory(name: str, length: int, who: str) -> dict[str, Any]:
    """Peak memory of one call, beyond its inputs, in a process that has done next to nothing."""
    row = find(name)
    for size in (WARMUP, length):
        named = {target.rival for target in row.targets if target.figure == "memory"}
        alone = replace(row, targets=tuple(replace(t, length=size) for t in row.targets if t.rival in named))
        call = subjects.calls(alone, size, compiled=False)[who]
        if isinstance(call, subjects.Missing):
            raise ValueError(call.reason)
        if size == WARMUP:
            call()
    return peak_memory(call)._asdict()
