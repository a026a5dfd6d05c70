"""Everything that is measured, one worker process after the other, into one JSON document."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from benchmarks import claims, worker
from benchmarks.revision import commit
from benchmarks.targets import ROWS, Row
from benchmarks.verdicts import selected
from benchmarks.worker import Job
from subquad.measure.machine import machine, versions
from subquad.ops.backends import backend

PACKAGES = (
    *("subquad", "torch", "performer-pytorch", "linformer", "nystrom-attention", "local-attention"),
    *("reformer-pytorch", "routing-transformer", "fla-core", "pytorch-fast-transformers"),
)
IDENTITY = ("quick", "only", "machine", "versions", "backend", "commit")  # of two runs that are one
TIMEOUT_S = {True: 240.0, False: 3600.0}  # for one worker, by `quick`
TIMING_S = {True: 0.6, False: 3.0}  # of timing at one length, where five rounds take less
TIMING_LIMIT_S = {True: 4.0, False: 60.0}  # after which the round in progress is the last

Say = Callable[[str], object]
Save = Callable[[dict[str, Any]], object]


def names() -> list[str]:
    """Of all rows and claims, as --only takes them."""
    return [row.name for row in ROWS] + [name for name, _ in claim_jobs(quick=True)]


def run(
    only: Sequence[str],
    *,
    quick: bool,
    threads: Sequence[int],
    say: Say,
    save: Save,
    before: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Measure what a name in `only` begins, or all if it is empty.

    Each is told of as it begins, and what there is so far is saved after each. What was measured `before`, by
    the same code on the same machine, is not measured again, but for what failed.
    """

    def wanted(name: str) -> bool:
        return not only or any(name.startswith(start) for start in only)

    results: dict[str, Any] = {
        "quick": quick,
        "only": list(only),
        "machine": machine(),
        "versions": versions(PACKAGES),
        "backend": str(backend()),
        "commit": commit(),
        "rows": {},
        "memory": {},
        "claims": {},
        "seconds": 0,
    }
    known = not results["commit"].endswith("-dirty")
    if before and known and all(before[name] == results[name] for name in IDENTITY):
        results = {**before, "finished": False}
    start = time.time() - results["seconds"]

    def save_so_far() -> None:
        save(results | {"seconds": round(time.time() - start)})

    for row in filter(lambda row: wanted(row.name), ROWS):
        by_threads = results["rows"].setdefault(row.name, {})
        lacking = [count for count in threads if "failed" in by_threads.get(str(count), {"failed": ""})]
        if lacking:
            say(f"{row.title}, threads: {', '.join(map(str, lacking))}")
            by_threads |= race(row, lacking, quick=quick)
            save_so_far()
        for length, who in rivalry(row):
            cells = results["memory"].setdefault(row.name, {}).setdefault(str(length), {})
            if who in cells:
                continue
            say(f"{row.title}, memory of {who}")
            job = Job(measure="memory", options={"name": row.name, "length": length, "who": who})
            cells[who] = worker.run(job, timeout=TIMEOUT_S[quick])
    for name, job in claim_jobs(quick=quick):
        if wanted(name) and name not in results["claims"]:
            say(name)
            results["claims"][name] = worker.run(job, timeout=TIMEOUT_S[quick])
            save_so_far()
    return results | {"seconds": round(time.time() - start), "finished": True}


def claim_jobs(*, quick: bool) -> Iterator[tuple[str, Job]]:
    """Each claim's name, and what measures it."""
    for name, kind, options in claims.measurements(quick=quick):
        yield name, Job(measure=kind, options=options)


def race(row: Row, threads: Sequence[int], *, quick: bool) -> dict[str, Any]:
    """What the row's worker measured, by number of threads."""
    options = {
        "name": row.name,
        "threads": threads,
        "lengths": selected(row, quick=quick),
        "seconds": TIMING_S[quick],
        "limit": TIMING_LIMIT_S[quick],
        "compiled": not quick,
    }
    job = Job(measure="race", options=options, threads=max(threads))
    result = worker.run(job, timeout=TIMEOUT_S[quick])
    return dict.fromkeys(map(str, threads), result) if "failed" in result else result["threads"]


def rivalry(row: Row) -> list[tuple[int, str]]:
    """Whose memory is measured, at which length."""
    pairs = {
        (target.length, who): None
        for target in row.targets
        if target.figure == "memory"
        for who in (target.tier, target.rival)
    }
    return list(pairs)
