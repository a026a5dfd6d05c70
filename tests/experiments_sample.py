"""A fit that ends within a second, on the small data set of `own_sample`."""

from dataclasses import replace
from pathlib import Path

from subquad.experiments.spec import Fit
from subquad.task import Dataset

QUICK = Fit(
    task="custom",
    target="over_55",
    task_options={},
    data="",
    length=20,
    attention="linear",
    options={},
    causal=False,
    dim=8,
    depth=1,
    heads=2,
    positions="sinusoidal",
    batch=8,
    steps=60,
    validate=20,
    learning_rate=0.01,
    warmup=5,
    weight_decay=0.01,
    clip=1.0,
    accumulate=1,
    dropout=0.1,
    precision="32-true",
    device="cpu",
    seed=0,
    threads=1,
)


def quick(schema: Path, data: Dataset) -> Fit:
    """The spec of a fit on the data that the schema describes."""
    return replace(QUICK, target=data.target, task_options={"schema": str(schema)}, data=data.fingerprint)
