"""A little of a run, timed in a process of its own as the run would be; nothing of it is kept."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from subquad.documents import validated
from subquad.experiments.spec import Bench, Fit, Place, Spec
from subquad.fields import Split
from subquad.recorded import Amount
from subquad.records import Record, Store

if TYPE_CHECKING:
    from subquad.executors import Tell
    from subquad.experiments.training import Training

STEPS = 5  # that are timed, behind one that warms up
STEPS_S = 10.0  # seconds after which the step under way is the last
BATCHES = 8  # of a split that are judged
TIMING_S = 0.1  # of a mechanism's forward and backward


class FitTimes(TypedDict):
    """Seconds of the parts of a fit, and the memory that a training step at full length takes.

    after_start: of this trial, without what a fit needs before its second step.
    """

    step: Amount
    checkpoint: Amount
    validation: Amount
    test: Amount
    measure: Amount
    after_start: Amount
    training_peak_mb: Amount


class CellTimes(TypedDict):
    """Seconds of one call at the trial's length, by operation."""

    ours: dict[str, Amount]
    reference: dict[str, Amount]


@dataclass(frozen=True, kw_only=True)
class FitTrial(Spec):
    """Some steps of a fit, and a part of its validation and test."""

    kind: ClassVar = "fit trial"

    fit: Fit
    place: Place

    def run(self, store: Store, tell: "Tell") -> dict[str, Any]:
        return {"result": {}, "measured": fit_times(self.fit), "data": {}}

    def check(self, record: Record) -> None:
        if record["status"] == "ok":
            validated(FitTimes, record["measured"])


@dataclass(frozen=True, kw_only=True)
class CellTrial(Spec):
    """A short timing of a cell of the bench."""

    kind: ClassVar = "cell trial"
    timed: ClassVar = True

    bench: Bench
    place: Place

    def run(self, store: Store, tell: "Tell") -> dict[str, Any]:
        return {"result": {}, "measured": cell_times(self.bench), "data": {}}

    def check(self, record: Record) -> None:
        if record["status"] == "ok":
            validated(CellTimes, record["measured"])


def fit_times(spec: Fit) -> FitTimes:
    from subquad.experiments.fit import cost
    from subquad.experiments.run import load
    from subquad.experiments.training import Training

    data = load(spec.data)
    with tempfile.TemporaryDirectory(prefix="subquad-") as folder:
        training = Training(
            spec, data, checkpoint_path=Path(folder) / "checkpoint", tell=lambda phase, step, loss: None
        )
        batches = training.batches()
        training.step(batches)
        start = time.perf_counter()
        steps: list[float] = []
        while not steps or (len(steps) < STEPS and sum(steps) < STEPS_S):
            steps.append(seconds_of(lambda: training.step(batches)))
        checkpoint = seconds_of(training.keep)
    validation, test = (pass_seconds(training, split) for split in ("validation", "test"))
    before = time.perf_counter()
    measured = cost(training)
    return FitTimes(
        step=sum(steps) / len(steps),
        checkpoint=checkpoint,
        validation=validation,
        test=test,
        measure=time.perf_counter() - before,
        after_start=time.perf_counter() - start,
        training_peak_mb=measured["training_peak_mb"],
    )


def pass_seconds(training: "Training", split: Split) -> float:
    """Of judging a whole split, by some of its batches, evenly from the shortest to the longest."""
    import torch

    count = sum(1 for _ in training.epoch(split, number=0, shuffle=False))
    chosen = set(range(0, count, -(-count // BATCHES)))
    training.network.eval()
    scorer, stream = training.data.objective.scorer(), training.new_stream()
    judging, start = 0.0, time.perf_counter()
    for place, batch in enumerate(training.epoch(split, number=0, shuffle=False)):
        if place in chosen:
            with torch.no_grad():
                judging += seconds_of(
                    lambda batch=batch: scorer.add(training.output(batch, stream).float(), batch)
                )
    return time.perf_counter() - start + judging * (count / len(chosen) - 1)


def cell_times(spec: Bench) -> CellTimes:
    from subquad.measure.cost import cost

    measured = cost(
        **asdict(spec.mechanism),
        **asdict(spec.inputs),
        length=spec.length,
        seconds=TIMING_S,
        device=spec.place.device,
    )
    operations = [name for name in measured if name != "memory"]
    return CellTimes(
        ours={name: measured[name]["ms"]["median"] / 1e3 for name in operations},
        reference={name: measured[name]["reference_ms"]["median"] / 1e3 for name in operations},
    )


def seconds_of(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start
