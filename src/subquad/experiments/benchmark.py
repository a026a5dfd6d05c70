"""Time and memory by length: mechanisms beside torch's fused attention, a process for each cell."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from subquad.executors import Local
from subquad.experiments.config import Benchmark
from subquad.experiments.device import resolve
from subquad.experiments.grid import Observer, run_missing
from subquad.experiments.rows import rows
from subquad.experiments.spec import Bench, MechanismSpec
from subquad.mechanism import Dims
from subquad.records import Record, Store


class Plan(NamedTuple):
    """A benchmark resolved into runs, and its rows as a report reads them."""

    specs: tuple[Bench, ...]
    document: dict[str, Any]


def plan(config: Benchmark) -> Plan:
    """Raises `ValueError` for what cannot be built, before anything runs."""
    dims = Dims(heads=config.heads, head_dim=config.head_dim, max_len=max(config.lengths))
    chosen = rows(config.attention, dims, causal=config.causal)
    specs = cells(
        chosen,
        lengths=sorted(config.lengths),
        heads=config.heads,
        head_dim=config.head_dim,
        batch=config.batch,
        dtype=config.dtype,
        device=resolve(config.device),
        threads=torch.get_num_threads(),
        peers=config.peers,
    )
    return Plan(specs, {"rows": [row.to_json() for row in chosen]})


def run(plan: Plan, config: Benchmark, store: Store, *, observer: Observer) -> list[Record]:
    """Run what is missing of a plan, one cell at a time; the records of all."""
    executor = Local(slots=1, timeout=config.timeout)
    return run_missing(plan.specs, store, executor=executor, observer=observer)


def cells(
    chosen: Sequence[MechanismSpec],
    *,
    lengths: Sequence[int],
    heads: int,
    head_dim: int,
    device: str,
    threads: int,
    batch: int = 1,
    dtype: str = "float32",
    peers: bool = False,
) -> tuple[Bench, ...]:
    """The rows at each length, shortest first."""
    return tuple(
        Bench(
            attention=row.attention,
            options=dict(row.options),
            causal=row.causal,
            length=length,
            heads=heads,
            head_dim=head_dim,
            batch=batch,
            dtype=dtype,
            backward=True,
            device=device,
            threads=threads,
            peers=peers,
        )
        for length in lengths
        for row in chosen
    )
