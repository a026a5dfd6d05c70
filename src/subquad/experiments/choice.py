"""What attention to take: candidates are measured near one length, and trained if they are fast enough.

What a mechanism's traits rule out is not measured. The others are timed beside torch's fused softmax at a
quarter of the length, at it and at twice of it; those that are faster are then trained on probes, or on the
task itself, for a mechanism that is fast and cannot do the work is no answer.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from subquad import tasks
from subquad.config import ModelConfig
from subquad.executors import Local
from subquad.experiments import benchmark
from subquad.experiments.comparison import data_of, fit
from subquad.experiments.config import Choice, Comparison, InputsConfig, TrainingConfig
from subquad.experiments.device import resolve
from subquad.experiments.grid import Observer, run_missing
from subquad.experiments.model import build_model
from subquad.experiments.rows import ALL, rows, task_of
from subquad.experiments.spec import AnySpec, Baseline, Bench, DataSpec, Fit, MechanismSpec, Place, Stream
from subquad.measure.cost import find_dtype
from subquad.measure.timing import interleaved
from subquad.mechanism import Dims, Traits
from subquad.nn.layers.named import has_whole_layers, traits_of
from subquad.notation import several
from subquad.records import Record, Store
from subquad.registry import catalog
from subquad.task import Dataset

SOFTMAX = "softmax"
SPLITS = "train=8000,validation=200,test=500"
RECALL = f"recall:{SPLITS},tokens=128,pairs=16,keys=32"
NEEDLE = f"needle:{SPLITS},tokens=192,distance=160"
PROBES = {  # by `Choice.kind`: what stands for it
    "any": (RECALL, NEEDLE),
    "language": (RECALL,),  # what was said is to be found again: Arora et al., arXiv:2312.04927
    "text": (NEEDLE,),  # a few words decide, wherever they stand
    "events": (NEEDLE,),  # one of them long ago may decide
    "image": (NEEDLE,),  # pixels far apart belong together
    "local": (),  # the neighbours of a token suffice
}
CAUSAL_KINDS = {"language"}
MODEL = ModelConfig(dropout=0.0)  # so few steps overfit nothing
PROBING = {"batch": 32, "learning_rate": 3e-3}  # with which softmax solves the probes in 300 steps

START_S = 6.0  # seconds until a run's process has loaded what it needs
TIMED_TOKENS = 1024  # at which fused softmax is timed, to say how long all will take


class Exercise(NamedTuple):
    """What candidates are trained on."""

    label: str
    data: DataSpec
    dataset: Dataset


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A choice resolved into runs: those that measure, and those that train whoever turns out to be fast."""

    measurements: tuple[Bench | Stream, ...]
    baselines: tuple[Baseline, ...]
    fits: tuple[Fit, ...]
    exercises: tuple[Exercise, ...]
    document: dict[str, Any]  # what `report.candidates` reads

    def training(self, labels: Collection[str]) -> tuple[Baseline | Fit, ...]:
        """The runs that train the candidates of those labels beside softmax; none for no candidate."""
        wanted = {*labels, SOFTMAX}
        fits = [spec for spec in self.fits if spec.mechanism.label in wanted]
        return (*self.baselines, *fits) if labels else ()


def plan(config: Choice) -> Plan:
    """Resolve and check everything. Raises `ValueError`, one message, for whatever cannot be done."""
    place = Place(device=resolve(config.device), threads=torch.get_num_threads())
    own = config.task and load_exercise(config.task, target=config.target, length=config.length)
    streaming = config.streaming or config.bounded
    causal = config.causal or streaming or config.kind in CAUSAL_KINDS
    if own:
        causal = causal or own.dataset.objective.causal
    length = config.length or (own.data.length if own else 0)
    exercises = (own,) if own and config.fit else tuple(map(load_exercise, PROBES[config.kind]))

    lengths = sorted({max(1, length // 4), length, 2 * length})
    dims = Dims(heads=config.inputs.heads, head_dim=config.inputs.head_dim, max_len=max(lengths))
    refusals: dict[str, str] = {}
    possible = candidates(config, dims, causal=causal, streaming=streaming, refusals=refusals)
    softmax = MechanismSpec(attention=SOFTMAX, causal=causal)
    fits = tuple(
        spec
        for exercise in exercises
        for mechanism in (softmax, *possible)
        for spec in fits_of(config, exercise, mechanism, place=place, refusals=refusals)
    )
    possible = [mechanism for mechanism in possible if mechanism.label not in refusals]
    timed = possible or [softmax]
    cells = benchmark.cells(timed, lengths=lengths, inputs=config.inputs, place=place)
    streams = [
        Stream(mechanism=mechanism, length=length, inputs=config.inputs, place=place)
        for mechanism in (timed if streaming else ())
    ]
    return Plan(
        measurements=(*cells, *streams),
        baselines=tuple(
            Baseline(data=exercise.data, baseline=baseline.name, seed=0, place=place)
            for exercise in exercises
            for baseline in exercise.dataset.baselines()
        ),
        fits=tuple(spec for spec in fits if spec.mechanism.label not in refusals),
        exercises=exercises,
        document={
            "length": length,
            "lengths": lengths,
            "causal": causal,
            "streaming": streaming,
            "bounded": config.bounded,
            "memory_mb": config.memory_mb,
            "inputs": asdict(config.inputs),
            "place": asdict(place),
            "steps": config.steps,
            "seeds": config.seeds,
            "rows": benchmark.rows_document([softmax, *possible]),
            "refusals": refusals,
            "exercises": [exercise_document(exercise) for exercise in exercises],
        },
    )


def run_specs(specs: Sequence[AnySpec], config: Choice, store: Store, *, observer: Observer) -> list[Record]:
    """Do what is missing of a plan's runs, one at a time; the records of all."""
    return run_missing(specs, store, executor=Local(slots=1, timeout=config.timeout), observer=observer)


def load_exercise(text: str, *, target: str | None = None, length: int | None = None) -> Exercise:
    """The task that "NAME:option=value,…" names, with at most `length` tokens of a sequence."""
    request = task_of(text, target=target)
    longest = length or tasks.build(request.name, **request.options).traits.length
    return Exercise(request.name, *data_of(request, longest))


def candidates(
    config: Choice, dims: Dims, *, causal: bool, streaming: bool, refusals: dict[str, str]
) -> list[MechanismSpec]:
    """The candidates that may be measured; `refusals` takes the others, by label, each with its reason.

    Raises `ValueError` for one that is not known, or cannot be built as it is asked for.
    """
    possible: list[MechanismSpec] = []
    for text in chain.from_iterable(map(several, config.attention)):
        for name in catalog() if text == ALL else [text]:
            if has_whole_layers(name):
                refusals[name] = "a whole layer, and no attention that could be timed by itself"
                continue
            claimed = traits_of(name)
            assert isinstance(claimed, Traits)
            if claimed.name == SOFTMAX:
                continue  # it stands beside every candidate
            if reason := why_unfit(claimed, causal=causal, streaming=streaming, bounded=config.bounded):
                refusals[name] = reason
                continue
            try:
                (mechanism,) = rows([name], dims, causal=causal)
            except ValueError as error:
                if text != ALL:
                    raise
                refusals[name] = str(error)
                continue
            if mechanism in possible:
                raise ValueError(f"{text!r} is asked for twice")
            possible.append(mechanism)
    return possible


def why_unfit(traits: Traits, *, causal: bool, streaming: bool, bounded: bool) -> str:
    """What rules a mechanism out before anything is measured; "" where nothing does."""
    if causal and traits.causal is None:
        return "no causal form"
    if causal and traits.causal == "values":
        return "its causal form chooses keys by looking at later ones"
    if not causal and not traits.bidirectional:
        return "no bidirectional form"
    if streaming and traits.state is None:
        return "cannot take tokens one at a time"
    if bounded and traits.state == "growing":
        return "its state grows with the stream"
    if traits.cost > 2:
        return f"its work grows with the length to the power of {traits.cost:g}"
    return ""


def fits_of(
    config: Choice, exercise: Exercise, mechanism: MechanismSpec, *, place: Place, refusals: dict[str, str]
) -> list[Fit]:
    """One for each seed, or none and a refusal, where no model can be built of the mechanism."""
    training = TrainingConfig(steps=config.steps, **({} if config.fit else PROBING))
    settings = Comparison(model=MODEL, training=training)
    specs = [fit(settings, exercise.data, mechanism, seed=seed, place=place) for seed in range(config.seeds)]
    try:
        build_model(specs[0], exercise.dataset)
    except ValueError as error:
        refusals[mechanism.label] = f"cannot be trained on {exercise.label}: {error}"
        return []
    return specs


def exercise_document(exercise: Exercise) -> dict[str, Any]:
    """An exercise as a report reads it."""
    objective = exercise.dataset.objective
    return {
        "label": exercise.label,
        "target": exercise.data.target,
        "fingerprint": exercise.data.fingerprint,
        "tokens": exercise.data.length,
        "metric": objective.metric,
        "metric_label": objective.metric_label,
        "higher_is_better": objective.higher_is_better,
        "groups": len(set(exercise.dataset.group("test").tolist())),
    }


def expected_seconds(plan: Plan) -> float:
    """How long a plan takes, about, were every candidate as slow as softmax, and all of them trained.

    Fused softmax is timed at a short length, from which its time grows with the square; of each fit one step
    is timed, in this process.
    """
    first = plan.measurements[0]
    tokens = min(first.length, TIMED_TOKENS)
    forward, both = softmax_seconds(
        first.inputs, tokens=tokens, causal=first.mechanism.causal, place=first.place
    )
    seconds = START_S * len(plan.measurements)
    for spec in plan.measurements:
        times = (spec.length / tokens) ** 2
        if isinstance(spec, Bench):  # memory is measured in a call each, and so it begins
            seconds += 2 * times * both + sum(timing_seconds(times * each) for each in (forward, both))
        else:
            seconds += times * forward + 1
    datasets = {exercise.label: exercise.dataset for exercise in plan.exercises}
    for spec in plan.fits:
        if spec.seed == 0:
            step = step_seconds(spec, datasets[spec.data.task])
            seconds += plan.document["seeds"] * (START_S + step * spec.training.steps)
    return seconds


def timing_seconds(each: float) -> float:
    """Of `measure.cost` with a reference as slow: five rounds, or as many as a limit allows."""
    pair = 2 * each
    return max(1.0, pair, min(5 * pair, 3.0))


def softmax_seconds(inputs: InputsConfig, *, tokens: int, causal: bool, place: Place) -> tuple[float, float]:
    """Of fused attention: forward, and forward and backward."""
    shape = inputs.batch, inputs.heads, tokens, inputs.head_dim
    dtype = find_dtype(inputs.dtype)
    q, k, v = (torch.randn(shape, device=place.device, dtype=dtype, requires_grad=True) for _ in range(3))

    def forward() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def both() -> object:
        out = forward()
        return torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    timings = interleaved({"forward": forward, "both": both}, seconds=0.1, device=place.device)
    return timings["forward"].median / 1e3, timings["both"].median / 1e3


def step_seconds(spec: Fit, dataset: Dataset) -> float:
    """Of a training step, after a first that warms up."""
    model = build_model(spec, dataset).to(spec.place.device)
    batch = dataset.synthetic(size=spec.training.batch, length=spec.data.length)
    inputs = tuple(x.to(spec.place.device) for x in batch.inputs)
    batch = batch._replace(inputs=inputs, target=batch.target.to(spec.place.device))
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        dataset.objective.loss(model(batch.inputs, None), batch).backward()
        seconds = time.perf_counter() - start
    return seconds
