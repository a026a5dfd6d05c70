"""The main job: mechanisms trained and measured side by side on one task.

Everything that can be refused is refused before the first run. Then come the baselines, the fits, and last
the bench, whose cells run one at a time whatever `workers` says, since they are timed.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from subquad import executors, tasks
from subquad.experiments import benchmark
from subquad.experiments.config import CELL, MULTIPLES, Comparison, InputsConfig
from subquad.experiments.device import resolve
from subquad.experiments.grid import Observer, run_missing
from subquad.experiments.model import build_model
from subquad.experiments.notation import written
from subquad.experiments.rows import rows, task_of
from subquad.experiments.spec import AnySpec, Baseline, Bench, DataSpec, Fit, MechanismSpec, Place
from subquad.mechanism import Dims
from subquad.recorded import VERSION
from subquad.records import Record, Store

VALIDATIONS = 4  # in a fit
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
    device, threads = resolve(config.device), torch.get_num_threads()
    task, options = task_of(config.task)
    traits = tasks.build(task, **options).traits
    longest = config.length or traits.length
    heads, head_dim = config.model.heads, config.model.head_dim
    dims = Dims(heads=heads, head_dim=head_dim, max_len=longest)
    rows(config.attention, dims)  # refuses what cannot be built, before the data are read
    dataset = tasks.load(task, target=config.target, length=longest, **options)
    mechanisms = rows(config.attention, dims, causal=dataset.objective.causal)
    data = DataSpec(
        task=task,
        target=dataset.target,
        options=options,
        fingerprint=dataset.fingerprint,
        length=min(longest, dataset.longest),
    )
    whole = Place(device=device, threads=threads)
    shared = Place(device=device, threads=max(1, threads // config.workers))
    fits = tuple(
        fit(config, data, mechanism, seed=seed, place=shared)
        for seed in range(config.seeds)
        for mechanism in mechanisms
    )
    for spec in fits[: len(mechanisms)]:
        build_model(spec, dataset)  # refuses what cannot be built, before anything runs
    baselines = tuple(
        Baseline(data=data, baseline=baseline.name, seed=seed, place=whole)
        for baseline in dataset.baselines()
        for seed in range(config.seeds if baseline.seeded else 1)
    )
    lengths = config.lengths or tuple(data.length * times for times in MULTIPLES)
    benches = benchmark.cells(
        mechanisms,
        lengths=sorted(lengths) if config.bench else (),
        inputs=InputsConfig(heads=heads, head_dim=head_dim),
        place=whole,
    )
    document = {
        "version": VERSION,
        "title": f"{data.target} from {task}",
        "task": written(task, options),
        "targets": list(traits.targets),
        "data": asdict(data),
        "summary": dict(dataset.summary),
        "unit": traits.unit,
        "objective": dataset.objective.kind,
        "metric": dataset.objective.metric,
        "metric_label": dataset.objective.metric_label,
        "higher_is_better": dataset.objective.higher_is_better,
        "balanced": dataset.objective.balanced,
        "rows": benchmark.rows_document(mechanisms),
        "seeds": config.seeds,
        "model": asdict(config.model),
        "training": asdict(config.training),
        "place": asdict(shared),
        "workers": config.workers,
        "bench": config.bench,
        "lengths": sorted({spec.length for spec in benches}),
        "keys": {
            "baseline": [spec.key for spec in baselines],
            "fit": [spec.key for spec in fits],
            "bench": [spec.key for spec in benches],
        },
    }
    return Plan(baselines=baselines, fits=fits, benches=benches, document=document)


def fit(config: Comparison, data: DataSpec, mechanism: MechanismSpec, *, seed: int, place: Place) -> Fit:
    steps = config.training.steps
    return Fit(
        data=data,
        mechanism=mechanism,
        model=config.model,
        training=config.training,
        validate=-(-steps // VALIDATIONS),
        warmup=-(-steps // WARMING_UP),
        seed=seed,
        place=place,
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
