"""A fit that ends within a second, on the small data set of `own_sample`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from subquad.config import ModelConfig
from subquad.experiments.config import TrainingConfig
from subquad.experiments.spec import DataSpec, Fit, MechanismSpec, Place
from subquad.task import Dataset

QUICK = Fit(
    data=DataSpec(task="custom", target="over_55", options={}, fingerprint="", length=20),
    mechanism=MechanismSpec(attention="linear"),
    model=ModelConfig(dim=8, depth=1, heads=2),
    training=TrainingConfig(steps=60, batch=8, learning_rate=0.01),
    validate=20,
    warmup=5,
    seed=0,
    place=Place(device="cpu", threads=1),
)


class Interrupted(Exception):
    """Ends a training from what it tells."""


def silent(phase: str, step: int, loss: float | None) -> None:
    """Nobody is told."""


def quick(schema: Path, data: Dataset) -> Fit:
    """The spec of a fit on the data that the schema describes."""
    return changed(
        QUICK,
        data={"target": data.target, "options": {"schema": str(schema)}, "fingerprint": data.fingerprint},
    )


def changed(spec: Any, **changes: Any) -> Any:
    """The spec with other values; those within its parts are given by name, as a mapping."""
    return replace(
        spec,
        **{
            name: replace(getattr(spec, name), **value) if isinstance(value, dict) else value
            for name, value in changes.items()
        },
    )
