"""What a spec asks for is done here, in the process that an executor gives it.

Each returns the parts of a record that the run itself knows: "result", "measured" and "data".
"""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from subquad.executors import Tell
from subquad.experiments.spec import Baseline, Bench, DataSpec, Fit, Stream
from subquad.records import Store

if TYPE_CHECKING:
    from subquad.task import Dataset

MIN_INTERVAL_S = 0.1  # seconds between two reports of the same phase


def run_fit(spec: Fit, store: Store, tell: Tell) -> dict[str, Any]:
    from subquad.experiments.fit import fit
    from subquad.experiments.predictor import export

    last, steps = ("", 0.0), spec.training.steps

    def report(phase: str, step: int, loss: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        if phase == last[0] and now < last[1] + MIN_INTERVAL_S and step < steps:
            return
        last = (phase, now)
        tell({"event": "progress", "phase": phase, "step": step, "steps": steps, "loss": loss})

    report("data", 0, None)
    data = load(spec.data)
    fitted = fit(
        spec,
        data,
        checkpoint_path=store.checkpoint_path(spec.key),
        tell=report,
        note=lambda text: tell({"event": "note", "text": text}),
    )
    export(fitted.model, data, spec, store.model_path(spec.key))
    return {"result": fitted.result, "measured": fitted.measured, "data": about(data)}


def run_baseline(spec: Baseline) -> dict[str, Any]:
    from subquad.task import baseline_result

    data = load(spec.data)
    output = data.baseline(spec.baseline, length=spec.data.length, seed=spec.seed)
    return {"result": baseline_result(data, output), "measured": {}, "data": about(data)}


def run_bench(spec: Bench) -> dict[str, Any]:
    from subquad.measure.cost import cost

    measured = cost(
        **asdict(spec.mechanism),
        **asdict(spec.inputs),
        length=spec.length,
        peers=spec.peers,
        device=spec.place.device,
    )
    return {"result": {}, "measured": measured, "data": {}}


def run_stream(spec: Stream) -> dict[str, Any]:
    from subquad.measure.stream import stream_cost

    measured = stream_cost(
        attention=spec.mechanism.attention,
        options=spec.mechanism.options,
        **asdict(spec.inputs),
        length=spec.length,
        device=spec.place.device,
    )
    return {"result": {}, "measured": measured, "data": {}}


def load(spec: DataSpec) -> "Dataset":
    """The examples. Raises `ValueError` where they are others than the spec's."""
    from subquad import tasks

    target = spec.target if tasks.build(spec.task, **spec.options).traits.targets else None
    data = tasks.load(spec.task, target=target, length=spec.length, **spec.options)
    if data.fingerprint != spec.fingerprint:
        raise ValueError("the data changed after this comparison began: start the command again")
    return data


def about(data: "Dataset") -> dict[str, Any]:
    return {
        "fingerprint": data.fingerprint,
        "objective": data.objective.kind,
        "metric": data.objective.metric,
        "summary": dict(data.summary),
    }
