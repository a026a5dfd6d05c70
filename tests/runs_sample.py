"""Specs of a bench cell, and what stands for running them: by the attention's name."""

from dataclasses import replace

from subquad.experiments.config import InputsConfig
from subquad.experiments.grid import Observer
from subquad.experiments.spec import Bench, MechanismSpec, Place

CELL = Bench(
    mechanism=MechanismSpec(attention="linear"),
    length=64,
    inputs=InputsConfig(heads=2, head_dim=8),
    peers=False,
    place=Place(device="cpu", threads=1),
)
TIMING = {"median": 1.0, "low": 1.0, "high": 1.0, "repeats": 3}
MEASURED = {
    "forward": {"ms": TIMING, "reference_ms": TIMING},
    "memory": {"mb": 1.0, "reference_mb": 1.0},
}


def cells(*names):
    return [replace(CELL, mechanism=MechanismSpec(attention=name)) for name in names]


class Recorder(Observer):
    """Remembers what it was told."""

    def __init__(self):
        self.events = []

    def on_skipped(self, spec):
        self.events.append(("skipped", spec))

    def on_started(self, spec):
        self.events.append(("started", spec))

    def on_progress(self, spec, progress):
        self.events.append(("progress", spec))

    def on_note(self, spec, text):
        self.events.append((text, spec))

    def on_finished(self, spec, record):
        self.events.append(("finished", spec))

    def of(self, what):
        return [spec.mechanism.attention for event, spec in self.events if event == what]
