"""One row of a comparison: trained, tested once with the weights that validation chose, and measured."""

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from subquad.experiments.ranks import group_of
from subquad.experiments.spec import Fit
from subquad.experiments.training import Note, Tell, Training
from subquad.measure.memory import MB, peak_memory, process_peak_mb
from subquad.measure.timing import interleaved
from subquad.nn.layers.named import every_option
from subquad.nn.model import SequenceModel
from subquad.task import Dataset, test_result


class Fitted(NamedTuple):
    """A trained model, what it reached and what it took."""

    model: SequenceModel
    result: dict[str, Any]  # the same whenever the spec is run (bit for bit on the same CPU)
    measured: dict[str, Any]  # on this machine, this time


def fit(spec: Fit, data: Dataset, *, checkpoint_path: Path, tell: Tell, note: Note = warnings.warn) -> Fitted:
    """Train, test and measure. `checkpoint_path` is where checkpoints go, and where an earlier one lies.

    Raises `FloatingPointError` when the loss is nan or infinite.
    """
    with group_of(spec, checkpoint_path):
        training = Training(spec, data, checkpoint_path=checkpoint_path, tell=tell, note=note)
        training.run()
    if spec.training.devices > 1:
        training.leave_group()
    course = training.course
    tell("test", spec.training.steps, None)
    judged, row_bytes = training.evaluate("test"), training.row_bytes
    result = {
        **test_result(data, judged),
        "validation": course.best,
        "best_step": course.best_step,
        "curve": course.curve,
        "parameters": training.model.parameters_by_part(),
        "form": "causal" if spec.mechanism.causal else "bidirectional",
        "options": every_option(spec.mechanism.attention, spec.mechanism.options),
    }
    tell("measure", spec.training.steps, None)
    measured = {
        "train_examples_per_second": rate(course.timed_examples, course.seconds),
        "train_units_per_second": rate(course.timed_tokens, course.seconds),
        "train_seconds": course.seconds,
        "peak_mb": process_peak_mb(),
        "state_mb": row_bytes / MB if spec.training.carry else None,
        **cost(training),
    }
    return Fitted(training.model, result, measured)


def rate(amount: int, seconds: float) -> float | None:
    """None where a process had no step but its first, which is not timed."""
    return amount / seconds if seconds else None


def cost(training: Training) -> dict[str, Any]:
    """Latency of one sequence at full length, and the memory that a training step at full length takes.

    Where a state is carried, both are of windows behind others as long.
    """
    batch, length = training.spec.training.batch, training.spec.data.length
    device = training.fabric.device
    one = training.fabric.to_device(training.data.synthetic(size=1, length=length))
    many = training.fabric.to_device(training.data.synthetic(size=batch, length=length))
    stream, training.stream = training.new_stream(), training.new_stream()

    @torch.no_grad()
    def classify() -> None:
        before = stream.state if stream else None
        training.output(one, stream)
        if stream and before:
            stream.state = before

    def train() -> None:
        training.optimiser.zero_grad()
        training.learn([many] * training.span)

    training.network.eval()
    latency = interleaved({"latency": classify}, device=device)["latency"]
    training.network.train()
    train()
    training.optimiser.zero_grad()
    peak = peak_memory(train, device=str(device))
    training.optimiser.zero_grad()
    return {
        "latency_ms": {**asdict(latency), "length": length},
        "training_peak_mb": peak.mb,
        "training_peak_method": peak.method,
    }
