"""One measurement in a process of its own: a job as JSON on the command line, its result as JSON back.

A process's memory and speed depend on what it has done before; a crash ends only itself.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

WARMUP = 64  # tokens that are run before memory is measured, so that libraries are loaded
ONE_CALL = 1e-9  # seconds of warming up, which is at least a call
RESULT = "result: "  # before the line that matters; packages print what they like

Job = dict[str, Any]


def run(job: Job, *, timeout: float) -> dict[str, Any]:
    """The job's result; {"failed": why} where there is none."""
    command = [sys.executable, "-m", "benchmarks.worker", json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"failed": f"no end after {timeout:,.0f} seconds"}
    for line in done.stdout.splitlines():
        if line.startswith(RESULT):
            return json.loads(line.removeprefix(RESULT))
    said = done.stderr.strip().splitlines()
    return {"failed": said[-1] if said else f"ended with status {done.returncode}"}


def race(
    row: str, threads: list[int], lengths: list[int], seconds: float, limit: float, compiled: bool
) -> dict[str, Any]:
    """Times of all who take part in a row, by threads and length, after their numbers were found right."""
    import torch

    from benchmarks import correctness
    from subquad.measure.timing import interleaved

    chosen = rows()[row]
    correctness.require_right(chosen)
    entered = {length: enter(chosen, length, compiled=compiled) for length in lengths}
    found = {}
    for count in threads:
        torch.set_num_threads(count)
        warmup = 0 if count == threads[0] else ONE_CALL  # compiled peers are compiled again for other threads
        times = partial(interleaved, repeats=5, seconds=seconds, limit=limit, warmup=warmup)
        found[str(count)] = {
            str(length): measured(chosen, length, *who, times) for length, who in entered.items()
        }
    return found


def enter(chosen: Any, length: int, *, compiled: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Who takes part and has been called once, by name, and why others do not."""
    from benchmarks import correctness, subjects

    calls = subjects.calls(chosen, length, compiled=compiled)
    missing = {name: call.reason for name, call in calls.items() if isinstance(call, subjects.Missing)}
    ready = {name: call for name, call in calls.items() if not isinstance(call, subjects.Missing)}
    for name in list(ready):
        try:
            if name in subjects.PEERS and chosen.deed != "step" and not subjects.PEERS[name].compiled:
                correctness.require_peer_right(chosen, name)
            ready[name]()
        except Exception as error:  # another package's, whatever it raises: it is left out, and told
            if name not in subjects.PEERS:
                raise
            missing[name] = f"{type(error).__name__}: {str(error)[:120]}"
            del ready[name]
    return ready, missing


def measured(
    chosen: Any, length: int, ready: dict[str, Any], missing: dict[str, str], times: Callable[..., Any]
) -> dict[str, Any]:
    """Times at one length, and the roofline of the machine beside them."""
    import torch

    from benchmarks import rooflines, subjects
    from subquad.measure.roofline import rates

    clock = "cpu" if torch.get_num_threads() == 1 else "wall"
    timings = times(ready, clock=clock)
    ours = subjects.mechanism(chosen, length)
    reached = rates(seconds=0.5, clock=clock)
    roofline = 1e3 * reached.seconds(work) if (work := rooflines.work(chosen, ours, length)) else None
    if subjects.UNATTENDED in timings:
        roofline = timings[subjects.UNATTENDED].median
    return {
        "ms": {name: asdict(timing) for name, timing in timings.items()},
        "missing": missing,
        "roofline_ms": roofline,
        "rates": asdict(reached),
        "seen": rooflines.density(ours, length) if needs_density(chosen) else None,
    }


def needs_density(row: Any) -> bool:
    return any(target.ratio is None for target in row.targets)


def memory(row: str, length: int, who: str) -> dict[str, Any]:
    """Peak memory of one call, beyond its inputs, in a process that has done next to nothing."""
    from benchmarks import subjects
    from subquad.measure.memory import peak_memory

    chosen = rows()[row]
    for size in (WARMUP, length):
        named = {target.rival for target in chosen.targets if target.figure == "memory"}
        alone = replace(
            chosen, targets=tuple(replace(t, length=size) for t in chosen.targets if t.rival in named)
        )
        call = subjects.calls(alone, size, compiled=False)[who]
        if isinstance(call, subjects.Missing):
            return {"failed": call.reason}
        if size == WARMUP:
            call()
    return peak_memory(call)._asdict()


def rows() -> dict[str, Any]:
    from benchmarks.targets import ROWS

    return {row.name: row for row in ROWS}


def main(text: str) -> None:
    job = json.loads(text)
    import torch

    torch.manual_seed(0)
    kind = job.pop("job")
    threads = job["threads"][0] if kind == "race" else job.pop("threads")
    torch.set_num_threads(threads)
    if kind == "race":
        result = race(**job)
    elif kind == "memory":
        result = memory(**job)
    else:
        from benchmarks import claims

        result = claims.measure(kind, **job)
    print(RESULT + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
