"""The main job: mechanisms trained and measured side by side on one task.

Everything that can be refused is refused before the first run. Then come the baselines, the fits, and last
the bench, whose cells run one at a time whatever `workers` says, since they are timed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from subquad import executors, tasks
from subquad.experiments import benchmark
from subquad.experiments.config import CELL, MULTIPLES, Comparison
from subquad.experiments.device import resolve
from subquad.experiments.grid import Observer, run_missing
from subquad.experiments.model import build_model
from subquad.experiments.notation import written
from subquad.experiments.rows import rows as parse_rows
from subquad.experiments.rows import task_of
from subquad.experiments.spec import AnySpec, Baseline, Bench, Fit, MechanismSpec
from subquad.mechanism import Dims
from subquad.records import Record, Store

VALIDATIONS = 4  # in a fit
NOT_IN_DOCUMENT = ("attention", "timeout", "executor")  # its rows stand there; the others change no result
WARMING_UP = 10  # one step in so many


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


def plan(config: Comparison) -> Plan:
    """Resolve and check everything. Raises `ValueError`, one message, for whatever cannot be done."""
    executors.find(config.executor)
    config = replace(config, device=resolve(config.device))
    task, task_options = task_of(config.task)
    traits = tasks.find(task).traits
    longest = config.length or traits.length
    heads = Dims(heads=config.heads, head_dim=config.dim // config.heads, max_len=longest)
    rows = parse_rows(config.attention, heads)
    data = tasks.load(task, target=config.target, length=longest, **task_options)
    threads = torch.get_num_threads()
    shared = max(1, threads // config.workers)
    data_fields = {
        "task": task,
        "task_options": task_options,
        "target": data.target,
        "data": data.fingerprint,
        "length": min(longest, data.longest),
    }
    fits = tuple(
        fit(config, row, data_fields, seed=seed, threads=shared)
        for seed in range(config.seeds)
        for row in rows
    )
    for spec in fits[: len(rows)]:
        build_model(spec, data)  # refuses what cannot be built, before anything runs
    baselines = tuple(
        Baseline(**data_fields, baseline=baseline.name, seed=seed, threads=threads)
        for baseline in data.baselines()
        for seed in range(config.seeds if baseline.seeded else 1)
    )
    lengths = config.lengths or tuple(data_fields["length"] * times for times in MULTIPLES)
    benches = benchmark.cells(
        rows,
        lengths=sorted(lengths) if config.bench else (),
        heads=config.heads,
        head_dim=config.dim // config.heads,
        device=config.device,
        threads=threads,
    )
    document = {
        **{name: value for name, value in asdict(config).items() if name not in NOT_IN_DOCUMENT},
        **data_fields,
        "task": written(task, task_options),
        "targets": list(traits.targets),
        "title": f"{data.target} from {task}",
        "unit": traits.unit,
        "objective": data.objective.kind,
        "metric": data.objective.metric,
        "metric_label": data.objective.metric_label,
        "higher_is_better": data.objective.higher_is_better,
        "balanced": data.objective.balanced,
        "summary": dict(data.summary),
        "rows": [row.to_json() for row in rows],
        "lengths": sorted({spec.length for spec in benches}),
        "threads": shared,
        "keys": {
            "baseline": [spec.key for spec in baselines],
            "fit": [spec.key for spec in fits],
            "bench": [spec.key for spec in benches],
        },
    }
    return Plan(baselines=baselines, fits=fits, benches=benches, document=document)


def fit(
    config: Comparison, row: MechanismSpec, data_fields: Mapping[str, Any], *, seed: int, threads: int
) -> Fit:
    return Fit(
        **data_fields,
        **asdict(row),
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        positions=config.positions,
        batch=config.batch,
        steps=config.steps,
        validate=-(-config.steps // VALIDATIONS),
        learning_rate=config.learning_rate,
        warmup=-(-config.steps // WARMING_UP),
        weight_decay=config.weight_decay,
        clip=config.clip,
        accumulate=config.accumulate,
        dropout=config.dropout,
        precision=config.precision,
        device=config.device,
        seed=seed,
        threads=threads,
    )


def run(plan: Plan, config: Comparison, store: Store, *, observer: Observer) -> list[Record]:
    """Do what is missing of a plan; the records of all its runs."""
    store.put_comparison(plan.document)
    training = (*plan.baselines, *plan.fits)
    executor = executors.find(config.executor)
    trained = run_missing(
        training, store, executor=executor(slots=config.workers, timeout=config.timeout), observer=observer
    )
    one_at_a_time = executor(slots=1, timeout=min(config.timeout, CELL))
    benched = run_missing(plan.benches, store, executor=one_at_a_time, observer=observer)
    store.put_comparison(plan.document)  # another may have been started meanwhile
    return trained + benched
