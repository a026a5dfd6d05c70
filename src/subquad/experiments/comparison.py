"""The main job: mechanisms trained and measured side by side, on one task or on several.

Everything that can be refused is refused before the first run. Then come the baselines, the fits, and last
the bench, whose cells run one at a time whatever `workers` says, since they are timed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from subquad import executors, tasks
from subquad.experiments import benchmark
from subquad.experiments.config import CELL, MULTIPLES, Comparison, InputsConfig
from subquad.experiments.device import require_devices, require_precision, resolve
from subquad.experiments.grid import Observer, run_missing
from subquad.experiments.model import build_model
from subquad.experiments.preparation import TellProgress, prepare, quiet
from subquad.experiments.presets import preset_of
from subquad.experiments.rows import ALL, TaskRequest, in_form, mechanisms, task_of
from subquad.experiments.spec import AnySpec, Baseline, Bench, DataSpec, Fit, MechanismSpec, Place
from subquad.mechanism import Dims
from subquad.nn.layers.named import has_whole_layers, require_buildable
from subquad.notation import several, written
from subquad.plugins import registered
from subquad.recorded import COMPARISON_VERSION
from subquad.records import Record, Store
from subquad.registry import catalog
from subquad.task import Dataset

VALIDATIONS = 4  # in a fit
WARMING_UP = 10  # one step in so many


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """What a comparison does on one of its tasks.

    rows: the mechanisms that can take it, each in the form that it asks for.
    refusals: why the others cannot, by their labels.
    document: `recorded.ComparedTask`.
    """

    data: DataSpec
    rows: tuple[MechanismSpec, ...]
    refusals: dict[str, str]
    baselines: tuple[Baseline, ...]
    fits: tuple[Fit, ...]
    document: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A comparison resolved into runs, and what its folder keeps of it.

    folders: of the data that are prepared.
    """

    tasks: tuple[TaskPlan, ...]
    benches: tuple[Bench, ...]
    folders: tuple[Path, ...]
    document: dict[str, Any]  # `recorded.Comparison`

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        return tuple(chain.from_iterable(task.baselines for task in self.tasks))

    @property
    def fits(self) -> tuple[Fit, ...]:
        """Seed by seed, so that a comparison under way has something of each task."""
        fits = chain.from_iterable(task.fits for task in self.tasks)
        return tuple(sorted(fits, key=lambda fit: fit.seed))

    @property
    def specs(self) -> tuple[AnySpec, ...]:
        return (*self.baselines, *self.fits, *self.benches)


def plan(config: Comparison, *, tell: TellProgress = quiet) -> Plan:
    """Resolve and check everything. Raises `ValueError`, one message, for whatever cannot be done.

    Data that take long to make are made once, for all runs; `tell` is told how far they are.
    """
    elsewhere = executors.find(config.executor).cls.elsewhere
    device, threads = resolve(config.device, elsewhere=elsewhere), torch.get_num_threads()
    require_precision(config.training.precision, device=device)
    require_devices(config.training.devices, device=device, elsewhere=elsewhere)
    whole = Place(device=device, threads=threads)
    shared = Place(device=device, threads=max(1, threads // config.workers))
    chosen = mechanisms(config.attention, every=catalog())
    requests = requests_of(config)
    require_takers(config, chosen, built_without_data(config, chosen, requests))
    folders = prepare(requests, tell=tell)
    planned = [
        plan_task(config, request, label, chosen, whole=whole, shared=shared)
        for label, request in requests.items()
    ]
    require_different(planned)
    require_takers(config, chosen, {task.document["label"]: task.refusals for task in planned})
    benched: list[MechanismSpec] = []
    for row in chain.from_iterable(task.rows for task in planned):
        if has_whole_layers(row.attention, row.options):
            continue  # the bench times attention by itself
        benched += [row] if row not in benched else []
    longest = max(task.data.length for task in planned)
    lengths = config.lengths or tuple(longest * times for times in MULTIPLES)
    benches = benchmark.cells(
        benched,
        lengths=sorted(lengths) if config.bench else (),
        inputs=InputsConfig(heads=config.model.heads, head_dim=config.model.head_dim),
        place=whole,
    )
    document = {
        "version": COMPARISON_VERSION,
        "tasks": [task.document for task in planned],
        "attention": [mechanism.label for mechanism in chosen],
        "length": config.length,
        "seeds": config.seeds,
        "model": asdict(config.model),
        "preset": preset_of(config.model),
        "training": asdict(config.training),
        "place": asdict(shared),
        "workers": config.workers,
        "plugins": registered(),
        "bench": config.bench,
        "lengths": sorted({spec.length for spec in benches}),
        "rows": benchmark.rows_document(benched),
        "keys": {"bench": [spec.key for spec in benches]},
    }
    return Plan(tasks=tuple(planned), benches=benches, folders=folders, document=document)


def requests_of(config: Comparison) -> dict[str, TaskRequest]:
    """The tasks by what they are called: their names, or all that was typed where two share a name."""
    requests = {text: task_of(text, target=config.target) for text in config.tasks}
    if len(requests) < len(config.tasks):
        twice = next(text for text in config.tasks if config.tasks.count(text) > 1)
        raise ValueError(f"{twice!r} is asked for twice")
    names = [request.name for request in requests.values()]
    return {
        request.name if names.count(request.name) == 1 else text: request
        for text, request in requests.items()
    }


def plan_task(
    config: Comparison,
    request: TaskRequest,
    label: str,
    chosen: Sequence[MechanismSpec],
    *,
    whole: Place,
    shared: Place,
) -> TaskPlan:
    """The runs on one task. Raises `ValueError` where its data cannot be had or used as they are."""
    traits = tasks.build(request.name, **request.options).traits
    data, dataset = data_of(request, config.length or traits.length)
    dims = Dims(heads=config.model.heads, head_dim=config.model.head_dim, max_len=data.length)
    rows: list[MechanismSpec] = []
    refusals: dict[str, str] = {}
    carried = config.training.carry > 0
    if carried and not dataset.windowed:
        raise ValueError(
            f"{label}: its sequences are whole, and there is no document along which to carry a state: leave "
            "carry out, or compare on texts, the task 'language'"
        )
    for mechanism in chosen:
        row = in_form(mechanism, causal=dataset.objective.causal or carried)
        spec = fit(config, data, row, seed=0, place=shared)
        if reason := refusal(row, dims) or refused(build_model, spec, dataset):
            refusals[row.label] = reason
        else:
            rows.append(row)
    baselines = tuple(
        Baseline(data=data, baseline=baseline.name, seed=seed, place=whole)
        for baseline in dataset.baselines()
        for seed in range(config.seeds if baseline.seeded else 1)
    )
    fits = tuple(
        fit(config, data, row, seed=seed, place=shared) for seed in range(config.seeds) for row in rows
    )
    chosen_target = {tasks.TARGET: data.target} if request.target or len(traits.targets) > 1 else {}
    document = {
        "label": label,
        "title": f"{data.target} from {label}",
        "task": written(data.task, {**data.options, **chosen_target}),
        "data": asdict(data),
        "summary": dict(dataset.summary),
        "unit": traits.unit,
        "objective": dataset.objective.kind,
        "metric": dataset.objective.metric,
        "metric_label": dataset.objective.metric_label,
        "higher_is_better": dataset.objective.higher_is_better,
        "balanced": dataset.objective.balanced,
        "rows": benchmark.rows_document(rows),
        "refusals": [{"label": name, "reason": reason} for name, reason in refusals.items()],
        "keys": {
            "baseline": [spec.key for spec in baselines],
            "fit": [spec.key for spec in fits],
        },
    }
    return TaskPlan(
        data=data, rows=tuple(rows), refusals=refusals, baselines=baselines, fits=fits, document=document
    )


def data_of(request: TaskRequest, length: int) -> tuple[DataSpec, Dataset]:
    """The data of a task, with at most `length` tokens of a sequence.

    Raises `DataError`, which names the task, where they cannot be had or used.
    """
    try:
        dataset = tasks.load(request.name, target=request.target, length=length, **request.options)
    except tasks.DataError as error:
        if request.name in str(error):
            raise
        raise tasks.DataError(f"{request.name}: {error}") from error
    spec = DataSpec(
        task=request.name,
        target=dataset.target,
        options=request.options,
        fingerprint=dataset.fingerprint,
        length=min(length, dataset.longest),
    )
    return spec, dataset


def built_without_data(
    config: Comparison, chosen: Sequence[MechanismSpec], requests: Mapping[str, TaskRequest]
) -> dict[str, dict[str, str]]:
    """By task, which mechanisms cannot be built at its length, before data are read that may be large."""
    heads, head_dim = config.model.heads, config.model.head_dim
    refusals: dict[str, dict[str, str]] = {}
    for label, request in requests.items():
        longest = config.length or tasks.build(request.name, **request.options).traits.length
        dims = Dims(heads=heads, head_dim=head_dim, max_len=longest)
        reasons = {each.label: refusal(in_form(each, causal=False), dims) for each in chosen}
        refusals[label] = {mechanism: reason for mechanism, reason in reasons.items() if reason}
    return refusals


def refusal(row: MechanismSpec, dims: Dims) -> str | None:
    """Why a mechanism or a layer cannot be built by itself, or one of a mixture's; None where they can."""
    sizes = {"heads": dims.heads, "head_dim": dims.head_dim, "max_len": dims.max_len}
    return refused(require_buildable, row.attention, row.options, causal=row.causal, **sizes)


def refused(make: Callable[..., object], *inputs: object, **options: Any) -> str | None:
    """Why something cannot be made; None where it can."""
    try:
        make(*inputs, **options)
    except ValueError as error:
        return str(error)
    return None


def require_different(planned: Sequence[TaskPlan]) -> None:
    """Raise `ValueError` where two tasks have the same data and ask the same of them."""
    for place, task in enumerate(planned):
        for other in planned[:place]:
            if other.data == task.data:
                labels = other.document["label"], task.document["label"]
                raise ValueError(f"{labels[0]!r} and {labels[1]!r} are the same task: leave one out")


def require_takers(
    config: Comparison, chosen: Sequence[MechanismSpec], refusals: Mapping[str, Mapping[str, str]]
) -> None:
    """Raise `ValueError` for a mechanism that no task can take; of "all", where no task can take any.

    refusals: why a task cannot take a mechanism, by task and mechanism.
    """
    by_mechanism = {
        each.label: {task: whys[each.label] for task, whys in refusals.items() if each.label in whys}
        for each in chosen
    }
    untaken = {label: whys for label, whys in by_mechanism.items() if len(whys) == len(refusals)}
    every = ALL in chain.from_iterable(map(several, config.attention))
    if not untaken or (every and len(untaken) < len(chosen)):
        return
    label, whys = next(iter(untaken.items()))
    if len(set(whys.values())) == 1:
        raise ValueError(next(iter(whys.values())))
    each = "; ".join(f"{task}: {why}" for task, why in whys.items())
    raise ValueError(f"{label!r} can take none of the tasks: {each}")


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
    executor = executors.find(config.executor)
    if store.remote and not executor.cls.elsewhere:
        raise ValueError(
            f"{store.remote.address!r} is for the runs of a cluster, and {config.executor!r} is of this "
            "machine: give a folder, or --executor ray"
        )
    training = (*plan.baselines, *plan.fits)
    trainer = executor(slots=config.workers, timeout=config.timeout)
    store.put_comparison(plan.document)  # the latest, and none that its executor refuses
    trainer.bring(plan.folders)
    trained = run_missing(training, store, executor=trainer, observer=observer)
    one_at_a_time = executor(slots=1, timeout=min(config.timeout, CELL))
    benched = run_missing(plan.benches, store, executor=one_at_a_time, observer=observer)
    store.put_comparison(plan.document)  # another may have been started meanwhile
    return trained + benched
