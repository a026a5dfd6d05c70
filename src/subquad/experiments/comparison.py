"""The main job: mechanisms trained and measured side by side on one task.

Everything that can be refused is refused before the first run. Then come the baselines, the fits, and last
the bench, whose cells run one at a time whatever `workers` says, since they are timed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from subquad import tasks
from subquad.experiments import benchmark
from subquad.experiments.asked import CELL, MULTIPLES, Comparison
from subquad.experiments.device import resolve
from subquad.experiments.grid import Observer, run_missing
from subquad.experiments.model import build
from subquad.experiments.rows import rows
from subquad.experiments.spec import AnySpec, Baseline, Bench, Fit, Row
from subquad.mechanism import Dims
from subquad.records import Record, Store
from subquad.tasks.metrics import BALANCED, LABELS, higher_is_better

VALIDATIONS = 4  # in a fit
WARMING_UP = 10  # one step in so many
BASELINES = {"majority": False, "boosting": True}  # whether another seed makes another one


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison resolved into runs, and what its folder keeps of it."""

    baselines: tuple[Baseline, ...]
    fits: tuple[Fit, ...]
    benches: tuple[Bench, ...]
    document: dict[str, Any]  # `recorded.Comparison`

    @property
    def specs(self) -> tuple[AnySpec, ...]:
        return (*self.baselines, *self.fits, *self.benches)


def plan(asked: Comparison) -> Plan:
    """Resolve and check everything. Raises `ValueError`, one message, for whatever cannot be done."""
    asked = replace(asked, device=resolve(asked.device))
    heads = Dims(heads=asked.heads, head_dim=asked.dim // asked.heads, max_len=asked.length)
    chosen = rows(asked.attention, heads)
    data = tasks.load(asked.task, target=asked.target, schema=asked.schema, keep=asked.length)
    threads = torch.get_num_threads()
    shared = max(1, threads // asked.workers)
    question = {
        "task": asked.task,
        "target": data.target.name,
        "schema": None if asked.schema is None else str(asked.schema.absolute()),
        "data": data.fingerprint,
        "length": min(asked.length, data.longest),
    }
    fits = tuple(
        fit(asked, row, question, seed=seed, threads=shared) for seed in range(asked.seeds) for row in chosen
    )
    for spec in fits[: len(chosen)]:
        build(spec, data)  # refuses what cannot be built, before anything runs
    baselines = tuple(
        Baseline(**question, baseline=baseline, seed=seed, threads=threads)
        for baseline, seeds in BASELINES.items()
        for seed in range(asked.seeds if seeds else 1)
    )
    lengths = asked.lengths or tuple(question["length"] * times for times in MULTIPLES)
    benches = benchmark.cells(
        chosen,
        lengths=sorted(lengths) if asked.bench else (),
        heads=asked.heads,
        head_dim=asked.dim // asked.heads,
        device=asked.device,
        threads=threads,
    )
    document = {
        **{name: value for name, value in asdict(asked).items() if name not in {"attention", "timeout"}},
        **question,
        "title": f"{data.target.name} from {asked.task}",
        "kind": data.kind,
        "unit": "event",
        "metric": data.metric,
        "metric_label": LABELS[data.metric],
        "higher_is_better": higher_is_better(data.metric),
        "balanced": data.metric in BALANCED,
        "summary": dict(data.summary),
        "rows": [row.to_json() for row in chosen],
        "lengths": sorted({spec.length for spec in benches}),
        "threads": shared,
        "keys": {
            "baseline": [spec.key for spec in baselines],
            "fit": [spec.key for spec in fits],
            "bench": [spec.key for spec in benches],
        },
    }
    return Plan(baselines=baselines, fits=fits, benches=benches, document=document)


def fit(asked: Comparison, row: Row, question: Mapping[str, Any], *, seed: int, threads: int) -> Fit:
    return Fit(
        **question,
        **asdict(row),
        dim=asked.dim,
        depth=asked.depth,
        heads=asked.heads,
        positions=asked.positions,
        batch=asked.batch,
        steps=asked.steps,
        validate=-(-asked.steps // VALIDATIONS),
        learning_rate=asked.learning_rate,
        warmup=-(-asked.steps // WARMING_UP),
        weight_decay=asked.weight_decay,
        clip=asked.clip,
        accumulate=asked.accumulate,
        dropout=asked.dropout,
        precision=asked.precision,
        device=asked.device,
        seed=seed,
        threads=threads,
    )


def run(planned: Plan, asked: Comparison, store: Store, *, observer: Observer) -> list[Record]:
    """Do what is missing of a plan; the records of all its runs."""
    store.put_comparison(planned.document)
    training = (*planned.baselines, *planned.fits)
    trained = run_missing(training, store, observer=observer, workers=asked.workers, timeout=asked.timeout)
    benched = run_missing(planned.benches, store, observer=observer, timeout=min(asked.timeout, CELL))
    store.put_comparison(planned.document)  # another may have been started meanwhile
    return trained + benched
