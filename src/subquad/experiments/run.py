"""What a spec asks for is done here, in the process that an executor gives it.

Each returns the parts of a record that the run itself knows: "result", "measured" and "data".
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subquad.executors import Tell
from subquad.experiments.spec import Baseline, Bench, Fit
from subquad.records import Store

if TYPE_CHECKING:
    from subquad.tasks.events import EventData

MIN_INTERVAL_S = 0.1  # seconds between two reports of the same phase


def run_fit(spec: Fit, store: Store, tell: Tell) -> dict[str, Any]:
    from subquad.experiments.fit import fit
    from subquad.experiments.trained import export

    last = ("", 0.0)

    def report(phase: str, step: int, loss: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        if phase == last[0] and now < last[1] + MIN_INTERVAL_S and step < spec.steps:
            return
        last = (phase, now)
        tell({"event": "progress", "phase": phase, "step": step, "steps": spec.steps, "loss": loss})

    report("data", 0, None)
    data = load(spec)
    kept = store.checkpoint_path(spec.key)
    fitted = fit(spec, data, kept=kept, tell=report, note=lambda text: tell({"event": "note", "text": text}))
    export(fitted.model, data, spec, store.model_path(spec.key))
    return {"result": fitted.result, "measured": fitted.measured, "data": about(data)}


def run_baseline(spec: Baseline) -> dict[str, Any]:
    from subquad.tasks import baselines

    data = load(spec)
    if spec.baseline == "majority":
        result = baselines.majority(data)
    else:
        result = baselines.boosting(data, length=spec.length, seed=spec.seed)
    return {"result": result, "measured": {}, "data": about(data)}


def run_bench(spec: Bench) -> dict[str, Any]:
    from subquad.measure.cost import cost

    asked = {name: value for name, value in spec.to_json().items() if name != "threads"}
    return {"result": {}, "measured": cost(**asked), "data": {}}


def load(spec: Fit | Baseline) -> "EventData":
    from subquad import tasks

    schema = Path(spec.schema) if spec.schema else None
    target = None if schema else spec.target
    data = tasks.load(spec.task, target=target, schema=schema, keep=spec.length)
    if data.fingerprint != spec.data:
        raise ValueError("the data changed after this comparison began: start the command again")
    return data


def about(data: "EventData") -> dict[str, Any]:
    return {"fingerprint": data.fingerprint, "summary": dict(data.summary)}
