"""How long a comparison will take before it starts, and how many steps fit into a time.

A little of each row on each task is run and timed (`subquad.experiments.trial`), and each baseline for a
while; the rest follows. What is on record already takes no time.
"""

import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from subquad import executors, records
from subquad.documents import Damaged, read_json, validated, write_json
from subquad.executors import Executor
from subquad.experiments.comparison import VALIDATIONS, Plan, plan
from subquad.experiments.config import CELL, Comparison, TrainingConfig
from subquad.experiments.preparation import TellProgress, quiet
from subquad.experiments.spec import AnySpec, Baseline, Bench, Fit
from subquad.experiments.training import CHECKPOINT_EVERY
from subquad.experiments.trial import CellTimes, CellTrial, FitTimes, FitTrial
from subquad.measure.cost import LIMIT
from subquad.nn.layers.named import traits_of
from subquad.recorded import Count
from subquad.records import Record, Store

S = TypeVar("S", Fit, Bench)

TRIAL_S = 300.0  # that a trial may take
BASELINE_S = 60.0  # that a baseline is watched
LEAST_STEPS = 20  # of a fit that a budget may leave
UNTIMED_CALLS = 3  # of a cell's operations, before they are timed


class Cost(NamedTuple):
    """Of some runs that are alike.

    label: what they are of.
    runs: that are missing.
    start: seconds of a run before its second step: process, data, model. Of other runs than fits, all.
    step: seconds of one step with its share of checkpoints.
    rest: seconds of validation, test and measurements of a run.
    training_peak_mb: memory that a training step takes.
    note: what a reader should know: that it takes at least so long, or why it was not timed.
    """

    label: str
    runs: int
    start: float
    step: float = 0.0
    rest: float = 0.0
    training_peak_mb: float | None = None
    note: str = ""

    def run_seconds(self, steps: int) -> float:
        return self.start + steps * self.step + self.rest

    def seconds(self, steps: int) -> float:
        """Of all its runs, one after the other."""
        return self.runs * self.run_seconds(steps)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a comparison will take.

    fits: of each row on each task.
    baselines, cells: one each, and one of the bench a row.
    workers: fits and baselines at a time.
    """

    fits: tuple[Cost, ...]
    baselines: tuple[Cost, ...]
    cells: tuple[Cost, ...]
    workers: int

    def seconds(self, steps: int) -> float:
        """Of everything that is missing, with fits of so many steps."""
        training = [
            cost.run_seconds(steps) for cost in (*self.baselines, *self.fits) for _ in range(cost.runs)
        ]
        return makespan(training, self.workers) + sum(cost.seconds(steps) for cost in self.cells)

    def steps_within(self, seconds: float) -> int:
        """The most steps, to the last ten, with which everything is done in so many seconds; 0 for none."""
        if self.seconds(LEAST_STEPS) > seconds:
            return 0
        if not any(cost.step * cost.runs for cost in self.fits):
            return LEAST_STEPS
        low, high = LEAST_STEPS, 2 * LEAST_STEPS
        while self.seconds(high) <= seconds:
            low, high = high, 2 * high
        while high - low > 10:
            middle = (low + high) // 20 * 10
            low, high = (middle, high) if self.seconds(middle) <= seconds else (low, middle)
        return low

    def to_json(self, steps: int) -> dict[str, Any]:
        def described(costs: Iterable[Cost]) -> list[dict[str, Any]]:
            return [{**cost._asdict(), "seconds": cost.seconds(steps)} for cost in costs]

        return {
            "steps": steps,
            "fits": described(self.fits),
            "baselines": described(self.baselines),
            "bench": described(self.cells),
            "workers": self.workers,
            "seconds": self.seconds(steps),
        }


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Seconds until the last of such runs ends; each begins in its turn, as soon as a worker is free."""
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def estimate(
    planned: Plan, config: Comparison, store: Store, *, all_fits: bool = False, tell: TellProgress = quiet
) -> Estimate:
    """Measure a little of everything that is missing, of `all_fits` whether they are or not.

    `tell` is told how far that is. Raises `ValueError` where several devices train a model.
    """
    if config.training.devices > 1:
        raise ValueError(
            f"devices={config.training.devices}: a trial is of one device, and says nothing of several: "
            "leave out devices, or the estimate and the budget"
        )
    missing = [spec for spec in planned.specs if not on_record(spec, store)]
    executor = executors.find(config.executor)
    trials = Trials(executor(slots=1, timeout=TRIAL_S), executor(slots=1, timeout=BASELINE_S), store)
    for each in (trials.executor, trials.baseline_executor):
        each.bring(planned.folders)
    baselines: list[Callable[[], Cost]] = []
    fits: list[Callable[[], Cost]] = []
    for task in planned.tasks:
        prefix = f"{task.document['label']}: " if len(planned.tasks) > 1 else ""
        due = [spec for spec in task.baselines if spec in missing]
        baselines += [partial(trials.baseline, spec, prefix) for spec in due]
        due_fits = task.fits if all_fits else [spec for spec in task.fits if spec in missing]
        fits += [partial(trials.fit, of_row, prefix) for of_row in by_row(due_fits)]
    limit = min(config.timeout, CELL)
    due_cells = [spec for spec in planned.benches if spec in missing]
    cells = [partial(trials.cells, of_row, limit) for of_row in by_row(due_cells)]
    total, costs = len(baselines) + len(fits) + len(cells), []
    try:
        for place, measure in enumerate((*baselines, *fits, *cells)):
            tell("measuring a few steps of each row", place / total)
            costs.append(measure())
    finally:
        trials.stop()
    first, second = len(baselines), len(baselines) + len(fits)
    return Estimate(
        baselines=tuple(costs[:first]),
        fits=tuple(costs[first:second]),
        cells=tuple(costs[second:]),
        workers=config.workers,
    )


class Budgeted(NamedTuple):
    """A comparison whose steps fit into a time."""

    config: Comparison
    estimate: Estimate | None  # None where the steps were chosen before


def within_budget(
    config: Comparison, seconds: float, store: Store, *, tell: TellProgress = quiet
) -> Budgeted:
    """The comparison with as many steps a fit as fit into so many seconds, measuring included.

    The choice is kept in the store's folder: the same comparison with the same budget has the same steps
    again, and finds its runs on record. Raises `ValueError` where the steps are chosen already, and where
    there is no time for the least.
    """
    if config.training.steps != TrainingConfig.steps:
        raise ValueError(
            f"a budget chooses the steps, and {config.training.steps:,} are given: leave one out"
        )
    key = records.key("budget", 1, {"comparison": asdict(config), "seconds": seconds})
    path = store.folder / "budgets" / f"{key}.json"
    measured, steps = None, chosen_before(path)
    if steps is None:
        start = time.monotonic()
        planned = plan(config, tell=tell)
        measured = estimate(planned, config, store, all_fits=True, tell=tell)
        left = seconds - (time.monotonic() - start)
        steps = measured.steps_within(left)
        if not steps:
            raise ValueError(
                f"{LEAST_STEPS} steps a fit, the least, take about {measured.seconds(LEAST_STEPS):,.0f} s, "
                f"and {max(0.0, left):,.0f} s of {seconds:,.0f} s are left after measuring: give more time, "
                "or fewer rows, tasks or seeds, or leave the bench out"
            )
        write_json(path, {"steps": steps, "seconds": seconds, "comparison": asdict(config)})
    return Budgeted(replace(config, training=replace(config.training, steps=steps)), measured)


def chosen_before(path: Path) -> int | None:
    """The steps that a file of an earlier choice says; None where there is none, or a damaged one."""
    try:
        return validated(StepsOfBudget, read_json(path))["steps"]
    except (FileNotFoundError, ValueError):
        return None


class StepsOfBudget(TypedDict):
    """Of a budget's file."""

    steps: Count


class Trials:
    """Runs that are timed, and of which nothing is recorded."""

    def __init__(self, executor: Executor, baseline_executor: Executor, store: Store) -> None:
        self.executor, self.baseline_executor, self.store = executor, baseline_executor, store

    def stop(self) -> None:
        self.executor.stop()
        self.baseline_executor.stop()

    def fit(self, fits: Sequence[Fit], prefix: str) -> Cost:
        label = prefix + fits[0].mechanism.label
        record = self.executor.run(FitTrial(fit=fits[0], place=fits[0].place), self.store, ignore)
        if record["status"] != "ok":
            return untimed(label, len(fits), record)
        times: FitTimes = record["measured"]
        return Cost(
            label=label,
            runs=len(fits),
            start=max(0.0, record["seconds"] - times["after_start"]),
            step=times["step"] + times["checkpoint"] / CHECKPOINT_EVERY,
            rest=VALIDATIONS * times["validation"] + times["test"] + times["measure"],
            training_peak_mb=times["training_peak_mb"],
        )

    def baseline(self, spec: Baseline, prefix: str) -> Cost:
        record = self.baseline_executor.run(spec, self.store, ignore)
        label = prefix + spec.label
        if record["status"] == "timeout":
            return Cost(label, 1, record["seconds"], note="takes longer than that")
        return Cost(label, 1, record["seconds"]) if record["status"] == "ok" else untimed(label, 1, record)

    def cells(self, cells: Sequence[Bench], limit: float) -> Cost:
        shortest = min(cells, key=lambda cell: cell.length)
        record = self.executor.run(CellTrial(bench=shortest, place=shortest.place), self.store, ignore)
        label = f"bench {shortest.mechanism.label}"
        if record["status"] != "ok":
            return untimed(label, len(cells), record)
        power = traits_of(shortest.mechanism.attention).cost
        each = [
            min(limit, cell_seconds(record["measured"], record["seconds"], longer, power))
            for longer in (cell.length / shortest.length for cell in cells)
        ]
        return Cost(label, len(cells), sum(each) / len(each))


def cell_seconds(times: CellTimes, start: float, longer: float, power: float) -> float:
    """Of a cell that is `longer` times as long as the trial's, whose cost grows by that power of it.

    start: seconds of the trial.
    """
    total = start
    for operation, ours in times["ours"].items():
        both = ours * longer**power + times["reference"][operation] * longer**2
        total += UNTIMED_CALLS * both + max(both, min(max(5 * both, 1.0), LIMIT))
    return total


def untimed(label: str, runs: int, record: Record) -> Cost:
    """Of runs that fail, which takes as long as it took here."""
    note = f"{record['status']}: {record['reason']}" if record["status"] != "timeout" else record["reason"]
    return Cost(label, runs, record["seconds"], note=note)


def by_row(specs: Iterable[S]) -> list[list[S]]:
    """Those of each mechanism."""
    rows: dict[str, list[S]] = {}
    for spec in specs:
        rows.setdefault(spec.mechanism.label, []).append(spec)
    return list(rows.values())


def on_record(spec: AnySpec, store: Store) -> bool:
    try:
        record = store.get(spec.key)
    except Damaged:
        return False
    return record is not None and record["status"] == "ok"


def ignore(event: object) -> None:
    """Of trials, nobody wants to know."""
