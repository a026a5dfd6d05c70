"""What a comparison will take before it starts, and the steps that fit into a time."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subquad.cli.estimates import cells, seconds_of_text
from subquad.config import ModelConfig
from subquad.executors import Executor
from subquad.experiments import estimate as module
from subquad.experiments.comparison import Plan, plan
from subquad.experiments.config import Comparison, TrainingConfig
from subquad.experiments.estimate import (
    LEAST_STEPS,
    Budgeted,
    Cost,
    Estimate,
    cell_seconds,
    estimate,
    makespan,
    within_budget,
)
from subquad.experiments.spec import Fit
from subquad.experiments.trial import CellTimes, CellTrial, FitTrial, fit_times, pass_seconds
from subquad.records import Store

seconds = st.floats(0.001, 1e4)
costs = st.builds(Cost, label=st.just("a"), runs=st.integers(1, 5), start=seconds, step=seconds, rest=seconds)
lists = st.lists(costs, max_size=4).map(tuple)
PARTS = {"fits": lists, "baselines": lists, "cells": lists, "workers": st.integers(1, 4)}
estimates = st.fixed_dictionaries(PARTS)  # of which the tests make estimates
steps = st.integers(1, 5000)

TINY = Comparison(
    tasks=("adding:train=60,validation=8,test=24,tokens=24",),
    attention=("softmax", "linear"),
    model=ModelConfig(dim=8, depth=1, heads=2),
    device="cpu",
    seeds=2,
)


@given(estimates, steps)
def test_the_total_is_the_sum_of_its_parts_and_less_with_more_workers(parts: dict[str, Any], steps: int):
    estimated = Estimate(**parts)
    costs = [*estimated.fits, *estimated.baselines, *estimated.cells]
    whole = sum(cost.seconds(steps) for cost in costs)
    alone = replace(estimated, workers=1)
    assert alone.seconds(steps) == pytest.approx(whole)
    assert estimated.seconds(steps) <= alone.seconds(steps) * (1 + 1e-9)
    assert estimated.seconds(steps) * estimated.workers >= whole * (1 - 1e-9)


@given(st.lists(seconds, min_size=1), st.integers(1, 5))
def test_no_run_ends_before_the_longest_and_workers_that_are_free_take_the_next(
    runs: list[float], workers: int
):
    taken = makespan(runs, workers)
    assert taken >= max(runs)
    assert taken <= sum(runs) / workers + max(runs) * (1 + 1e-9)


@given(estimates, steps, steps)
def test_more_steps_never_take_less(parts: dict[str, Any], one: int, other: int):
    estimated = Estimate(**parts)
    few, many = sorted((one, other))
    assert estimated.seconds(few) <= estimated.seconds(many) * (1 + 1e-9)


@given(estimates, st.floats(0, 1e6), st.floats(0, 1e6))
def test_less_time_never_has_room_for_more_steps(parts: dict[str, Any], one: float, other: float):
    estimated = Estimate(**parts)
    less, more = sorted((one, other))
    assert estimated.steps_within(less) <= estimated.steps_within(more)


@given(estimates, st.floats(0, 1e6))
def test_the_steps_of_a_budget_fit_into_it_and_ten_more_do_not(parts: dict[str, Any], time: float):
    estimated = Estimate(**parts)
    chosen = estimated.steps_within(time)
    if chosen:
        assert chosen >= LEAST_STEPS
        assert estimated.seconds(chosen) <= time
        assert not estimated.fits or estimated.seconds(chosen + 10) > time
    else:
        assert estimated.seconds(LEAST_STEPS) > time


@given(seconds, seconds, st.floats(0, 60), st.floats(1, 64), st.floats(1, 64), st.floats(1, 2))
def test_a_longer_cell_never_takes_less(
    ours: float, reference: float, start: float, one: float, other: float, power: float
):
    times: CellTimes = {"ours": {"forward": ours}, "reference": {"forward": reference}}
    short, long = (cell_seconds(times, start, longer, power) for longer in sorted((one, other)))
    assert start < short <= long


@pytest.fixture(scope="module")
def planned() -> Plan:
    return plan(TINY)


class Clock:
    """Stands still but for what a fake training does."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_pass_is_reckoned_from_some_of_its_batches_by_their_number(split: Any, monkeypatch: Any):
    """Every batch takes a second to make, and as many more to judge as it is long."""
    clock = Clock()
    monkeypatch.setattr("subquad.experiments.trial.time.perf_counter", clock)

    def batches(split: str, *, number: int, shuffle: bool):
        for place in range(100):
            clock.now += 1
            yield place

    class Anything:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: self

        def add(self, output: Any, batch: int) -> None:
            clock.now += batch

    training = Anything()
    training.epoch = batches  # pyright: ignore[reportAttributeAccessIssue]
    training.config = TrainingConfig(batch=2)  # pyright: ignore[reportAttributeAccessIssue]
    training.data = Anything()  # pyright: ignore[reportAttributeAccessIssue]
    training.data.count = lambda split: 199  # pyright: ignore[reportAttributeAccessIssue]
    training.data.objective = Anything()  # pyright: ignore[reportAttributeAccessIssue]
    training.data.objective.scorer = Anything  # pyright: ignore[reportAttributeAccessIssue]
    training.network = training  # pyright: ignore[reportAttributeAccessIssue]
    judged = sum(range(100))
    assert pass_seconds(cast(Any, training), split) == pytest.approx(100 + judged, rel=0.1)


def test_a_trial_times_every_part_of_a_fit(planned: Plan):
    times: dict[str, Any] = {**fit_times(planned.fits[0])}
    assert all(value > 0 for name, value in times.items() if name != "training_peak_mb")
    parts = sum(times[name] for name in ("step", "checkpoint", "measure"))
    assert times["after_start"] > parts


def test_a_trial_is_read_back_as_it_was_asked_for(planned: Plan):
    for trial in (
        FitTrial(fit=planned.fits[0], place=planned.fits[0].place),
        CellTrial(bench=planned.benches[0], place=planned.benches[0].place),
    ):
        assert type(trial).from_json(json.loads(json.dumps(trial.to_json()))) == trial
    with pytest.raises(ValueError, match="step: is missing"):
        FitTrial(fit=planned.fits[0], place=planned.fits[0].place).check({"status": "ok", "measured": {}})


class Instant(Executor):
    """An executor whose trials take no time, and say that a step of a fit takes a second."""

    name = "instant"
    asked: ClassVar[list[Any]] = []

    def run(self, spec: Any, store: Store, tell: Any) -> dict[str, Any]:
        self.asked.append(spec)
        times = {"step": 1.0, "checkpoint": 0.0, "validation": 2.0, "test": 3.0, "measure": 4.0}
        cell = {"ours": {"forward": 0.1}, "reference": {"forward": 0.1}}
        measured = (
            cell if isinstance(spec, CellTrial) else {**times, "after_start": 5.0, "training_peak_mb": 7.0}
        )
        return {"status": "ok", "reason": "", "seconds": 11.0, "measured": measured}

    def stop(self) -> None:
        pass


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(Instant, "asked", [])
    monkeypatch.setattr(module.executors, "find", lambda name: module.executors.ExecutorRequest(Instant, {}))
    return Instant.asked


def test_everything_that_is_missing_is_reckoned_and_nothing_is_recorded(
    planned: Plan, instant: list[Any], tmp_path: Path
):
    estimated = estimate(planned, TINY, Store(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
    assert [(cost.label, cost.runs) for cost in estimated.fits] == [("softmax", 2), ("linear", 2)]
    assert [cost.runs for cost in estimated.cells] == [5, 5]
    assert len(estimated.baselines) == len(planned.baselines)
    for cost in estimated.fits:
        assert cost.run_seconds(100) == pytest.approx(6 + 100 + 4 * 2 + 3 + 4)
    assert len(instant) == len(planned.baselines) + 2 + 2


def test_what_is_on_record_takes_no_time(
    planned: Plan, instant: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recorded = {planned.fits[0].key, *(spec.key for spec in planned.benches)}
    monkeypatch.setattr(Store, "get", lambda self, key: {"status": "ok"} if key in recorded else None)
    estimated = estimate(planned, TINY, Store(tmp_path))
    assert not estimated.cells
    assert {cost.label: cost.runs for cost in estimated.fits} == {"softmax": 1, "linear": 2}


def test_a_budget_is_resolved_once_and_the_same_request_has_the_same_runs(instant: list[Any], tmp_path: Path):
    store = Store(tmp_path)
    first = within_budget(TINY, 3600, store)
    assert first.estimate is not None
    keys = [spec.key for spec in plan(first.config).specs]
    measured = len(instant)
    again = within_budget(TINY, 3600, store)
    assert again == Budgeted(first.config, None)
    assert len(instant) == measured
    assert [spec.key for spec in plan(again.config).specs] == keys
    assert within_budget(TINY, 1800, store).config.training.steps < first.config.training.steps
    assert {**asdict(first.config), "training": None} == {**asdict(TINY), "training": None}


def test_a_damaged_choice_is_made_anew(instant: list[Any], tmp_path: Path):
    within_budget(TINY, 3600, Store(tmp_path))
    (kept,) = (tmp_path / "budgets").iterdir()
    kept.write_text('{"steps": "many"}')
    assert within_budget(TINY, 3600, Store(tmp_path)).estimate is not None


def test_a_budget_without_room_for_the_least_says_what_to_do(instant: list[Any], tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"20 steps a fit, the least, take about .* give more time, or fewer rows"
    ):
        within_budget(TINY, 60, Store(tmp_path))
    with pytest.raises(ValueError, match="a budget chooses the steps, and 50 are given: leave one out"):
        within_budget(replace(TINY, training=TrainingConfig(steps=50)), 3600, Store(tmp_path))


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400)]
)
def test_a_time_is_read_as_people_write_it(text: str, expected: float):
    assert seconds_of_text(text) == expected


@pytest.mark.parametrize("text", ["", "10", "0m", "ten minutes", "-5m", "5m3h"])
def test_another_text_is_no_time(text: str):
    with pytest.raises(ValueError, match="a time is written as in 90s, 10m, 2h or 1h30m, and is not"):
        seconds_of_text(text)


def test_a_cost_is_shown_with_all_that_it_holds():
    cost = Cost("linear", 2, start=10, step=0.1, rest=5, training_peak_mb=12.4, note="so it is")
    assert cells(cost, 100) == ("linear", "2", "100 ms", "25 s", "12 MB", "50 s", "so it is")


@pytest.mark.slow
def test_a_dry_run_measures_in_processes_and_leaves_no_record(tmp_path: Path):
    config = replace(TINY, attention=("linear",), lengths=(32,))
    estimated = estimate(plan(config), config, Store(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
    assert [cost.note for cost in (*estimated.fits, *estimated.baselines, *estimated.cells)] == [""] * 3
    assert estimated.fits[0].step > 0
    assert estimated.fits[0].start > 1  # a process that imports torch
    assert isinstance(plan(config).fits[0], Fit)
