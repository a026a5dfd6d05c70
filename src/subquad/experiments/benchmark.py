"""Time and memory by length: mechanisms beside torch's fused attention, a process for each cell."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from subquad.experiments.asked import Benchmark
from subquad.experiments.device import resolve
from subquad.experiments.rows import rows
from subquad.experiments.spec import Bench, Row
from subquad.mechanism import Dims


class Plan(NamedTuple):
    """A benchmark resolved into runs, and its rows as a report reads them."""

    specs: tuple[Bench, ...]
    document: dict[str, Any]


def plan(asked: Benchmark) -> Plan:
    """Raises `ValueError` for what cannot be built, before anything runs."""
    dims = Dims(heads=asked.heads, head_dim=asked.head_dim, max_len=max(asked.lengths))
    chosen = rows(asked.attention, dims, causal=asked.causal)
    specs = cells(
        chosen,
        lengths=sorted(asked.lengths),
        heads=asked.heads,
        head_dim=asked.head_dim,
        batch=asked.batch,
        dtype=asked.dtype,
        device=resolve(asked.device),
        threads=torch.get_num_threads(),
        peers=asked.peers,
    )
    return Plan(specs, {"rows": [row.to_json() for row in chosen]})


def cells(
    chosen: Sequence[Row],
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
