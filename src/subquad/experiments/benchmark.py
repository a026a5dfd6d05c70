"""Time and memory by length: mechanisms beside torch's fused attention, a process for each cell."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from subquad.executors import Local
from subquad.experiments.config import Benchmark, InputsConfig
from subquad.experiments.device import resolve
from subquad.experiments.grid import Observer, run_missing
from subquad.experiments.rows import rows
from subquad.experiments.spec import Bench, MechanismSpec, Place
from subquad.mechanism import Dims
from subquad.records import Record, Store


class Plan(NamedTuple):
    """A benchmark resolved into runs, and its rows as a report reads them."""

    specs: tuple[Bench, ...]
    document: dict[str, Any]


def plan(config: Benchmark) -> Plan:
    """Raises `ValueError` for what cannot be built, before anything runs."""
    inputs = config.inputs
    dims = Dims(heads=inputs.heads, head_dim=inputs.head_dim, max_len=max(config.lengths))
    mechanisms = rows(config.attention, dims, causal=config.causal)
    specs = cells(
        mechanisms,
        lengths=sorted(config.lengths),
        inputs=inputs,
        place=Place(device=resolve(config.device), threads=torch.get_num_threads()),
        peers=config.peers,
    )
    return Plan(specs, {"rows": rows_document(mechanisms)})


def run(plan: Plan, config: Benchmark, store: Store, *, observer: Observer) -> list[Record]:
    """Run what is missing of a plan, one cell at a time; the records of all."""
    executor = Local(slots=1, timeout=config.timeout)
    return run_missing(plan.specs, store, executor=executor, observer=observer)


def cells(
    mechanisms: Sequence[MechanismSpec],
    *,
    lengths: Sequence[int],
    inputs: InputsConfig,
    place: Place,
    peers: bool = False,
) -> tuple[Bench, ...]:
    """The mechanisms at each length, shortest first."""
    return tuple(
        Bench(mechanism=mechanism, length=length, inputs=inputs, place=place, peers=peers)
        for length in lengths
        for mechanism in mechanisms
    )


def rows_document(mechanisms: Sequence[MechanismSpec]) -> list[dict[str, Any]]:
    """The rows of a table as a report reads them: each a `recorded.MechanismRow`."""
    return [{**asdict(mechanism), "label": mechanism.label} for mechanism in mechanisms]
