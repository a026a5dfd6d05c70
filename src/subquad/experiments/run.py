"""One run in a process of its own: `python -m subquad.experiments.run`, started by `grid`.

The first line of standard input says what to do; the parent then keeps the pipe open, and when it closes,
however the parent died, this process ends too, with all that it started. Standard output carries events as
`pipe` describes them: progress, and at the end the outcome. Whatever libraries print goes to standard error.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from subquad.experiments.pipe import written
from subquad.experiments.spec import KINDS, AnySpec, Baseline, Bench, Fit
from subquad.records import Store

if TYPE_CHECKING:
    from subquad.task import Dataset

Send = Callable[[dict[str, Any]], None]

QUIET = 0.1  # seconds between two reports of the same phase


def main() -> None:
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    asked = json.loads(sys.stdin.readline())
    token = asked["token"]
    threading.Thread(target=end_with_parent, args=(sys.stdin,), daemon=True).start()
    spec = KINDS[asked["kind"]](**asked["spec"])

    def send(event: dict[str, Any]) -> None:
        events.write(written(event, token))

    try:
        outcome = run(spec, Store(Path(asked["folder"])), send)
        send({"event": "outcome", "status": "ok", "reason": "", **outcome})
    except Exception as error:  # the one place that catches everything, and hands on what it caught
        send({"event": "outcome", **failure(error)})
        raise  # the traceback goes to standard error


def end_with_parent(stdin: TextIO) -> None:
    stdin.read()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def run(spec: AnySpec, store: Store, send: Send) -> dict[str, Any]:
    """The parts of a record that the run itself knows: "result", "measured" and "data"."""
    import torch

    from subquad.measure.machine import machine, versions

    torch.set_num_threads(spec.threads)
    send({"event": "start", "machine": machine(), "versions": versions()})
    match spec:
        case Fit():
            return run_fit(spec, store, send)
        case Baseline():
            return run_baseline(spec)
        case Bench():
            return run_bench(spec)


def run_fit(spec: Fit, store: Store, send: Send) -> dict[str, Any]:
    from subquad.experiments.fit import fit
    from subquad.experiments.trained import export

    told = ("", 0.0)

    def tell(phase: str, step: int, loss: float | None) -> None:
        nonlocal told
        now = time.monotonic()
        if phase == told[0] and now < told[1] + QUIET and step < spec.steps:
            return
        told = (phase, now)
        send({"event": "progress", "phase": phase, "step": step, "steps": spec.steps, "loss": loss})

    tell("data", 0, None)
    data = load(spec)
    kept = store.checkpoint_path(spec.key)
    fitted = fit(spec, data, kept=kept, tell=tell, note=lambda text: send({"event": "note", "text": text}))
    export(fitted.model, data, spec, store.model_path(spec.key))
    return {"result": fitted.result, "measured": fitted.measured, "data": about(data)}


def run_baseline(spec: Baseline) -> dict[str, Any]:
    from subquad.task import baseline_result

    data = load(spec)
    output = data.baseline(spec.baseline, length=spec.length, seed=spec.seed)
    return {"result": baseline_result(data, output), "measured": {}, "data": about(data)}


def run_bench(spec: Bench) -> dict[str, Any]:
    from subquad.measure.cost import cost

    asked = {name: value for name, value in spec.to_json().items() if name != "threads"}
    return {"result": {}, "measured": cost(**asked), "data": {}}


def load(spec: Fit | Baseline) -> "Dataset":
    from subquad import tasks

    target = spec.target if tasks.find(spec.task).traits.targets else None
    data = tasks.load(spec.task, target=target, length=spec.length, **spec.task_options)
    if data.fingerprint != spec.data:
        raise ValueError("the data changed after this comparison began: start the command again")
    return data


def about(data: "Dataset") -> dict[str, Any]:
    return {
        "fingerprint": data.fingerprint,
        "objective": data.objective.kind,
        "metric": data.objective.metric,
        "summary": dict(data.summary),
    }


def failure(error: Exception) -> dict[str, str]:
    """How a run ended that could not do what was asked."""
    import torch

    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, FloatingPointError):
        return {"status": "not finite", "reason": text}
    starved = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text
    return {"status": "out of memory" if starved else "failed", "reason": text}


if __name__ == "__main__":
    main()
