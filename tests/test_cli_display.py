"""Whoever watches a comparison reads which run of how many, step, loss and the time left."""

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
from experiments_sample import QUICK
from rich.console import Console

from subquad.cli import display
from subquad.cli.display import ProgressDisplay, format_duration
from subquad.executors import Progress
from subquad.experiments.benchmark import cells
from subquad.experiments.config import InputsConfig
from subquad.experiments.spec import AnySpec, MechanismSpec
from subquad.recorded import DONE_TYPES, FAILED_TYPES

BENCHES = cells(
    [MechanismSpec(attention="linear")],
    lengths=[64, 128],
    inputs=InputsConfig(heads=2, head_dim=4),
    place=QUICK.place,
)
SPECS = (QUICK, *BENCHES)


def step(number) -> Progress:
    return {
        "event": "progress",
        "phase": "train",
        "step": number,
        "steps": QUICK.training.steps,
        "loss": 0.25,
    }


def record(spec, status="ok", seconds=10.0, **result):
    return {"status": status, "reason": "why", "seconds": seconds, "result": result}


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def console(request):
    return Console(file=io.StringIO(), force_terminal=request.param, width=160, color_system=None)


def test_a_run_under_way_shows_place_step_loss_and_time_left(console, monkeypatch):
    monkeypatch.setattr(display, "LINE_INTERVAL_S", 0.0)
    monkeypatch.setattr(display, "REFRESH_S", 0.0)
    with ProgressDisplay(SPECS, console) as observer:
        observer.on_started(QUICK)
        observer.on_progress(QUICK, step(29))
        observer.on_progress(QUICK, step(30))
        observer.progress.refresh()
        shown = console.file.getvalue()
    assert "run 1 of 3: linear · seed 0" in shown
    assert "train step 30 of 60, loss 0.2500" in shown
    assert "left" in shown


def test_a_run_on_a_cluster_shows_its_node(console, monkeypatch):
    monkeypatch.setattr(display, "LINE_INTERVAL_S", 0.0)
    with ProgressDisplay(SPECS, console) as observer:
        observer.on_started(QUICK)
        observer.on_progress(QUICK, {**step(30), "node": "node-7"})
        observer.progress.refresh()
        shown = console.file.getvalue()
    assert "train step 30 of 60, loss 0.2500 on node-7" in shown


def test_not_every_step_looks_at_all_runs(console, monkeypatch):
    monkeypatch.setattr(display, "REFRESH_S", 1e9)
    looked = []
    with ProgressDisplay(SPECS, console) as observer:
        monkeypatch.setattr(observer, "outlook", lambda: looked.append(None) or "")
        observer.on_started(QUICK)
        for number in range(50):
            observer.on_progress(QUICK, step(number))
        assert not looked
        observer.on_finished(QUICK, record(QUICK))
        assert len(looked) == 1


def test_of_several_tasks_a_run_says_which_and_goes_by_the_times_of_its_own(console):
    other = replace(QUICK, data=replace(QUICK.data, task="recall"))
    again = replace(other, seed=1)
    with ProgressDisplay([QUICK, other, again], console) as observer:
        observer.on_started(QUICK)
        observer.on_started(other)
        observer.on_finished(QUICK, record(QUICK, seconds=1000.0))
        assert observer.expected(again) == 1000.0
        observer.on_finished(other, record(other, seconds=10.0))
        assert observer.expected(again) == 10.0
        shown = console.file.getvalue()
    assert "run 1 of 3: custom: linear · seed 0" in shown
    assert "run 2 of 3: recall: linear · seed 0" in shown


def test_what_a_run_notes_is_a_line_of_its_own(console):
    with ProgressDisplay(SPECS, console) as observer:
        observer.on_note(QUICK, "'kept' is damaged")
    assert "run 1 of 3: linear · seed 0: 'kept' is damaged" in console.file.getvalue()


def test_an_ended_run_leaves_its_scores_or_its_reason(console):
    with ProgressDisplay(SPECS, console) as observer:
        for spec, made in ((QUICK, record(QUICK, test={"auc": 0.75})), (BENCHES[0], record(None, "timeout"))):
            observer.on_started(spec)
            observer.on_finished(spec, made)
    shown = console.file.getvalue()
    assert "run 1 of 3: linear · seed 0: auc 0.7500, 10 s" in shown
    assert "run 2 of 3: bench linear · 64 tokens: timeout: why" in shown


def test_what_was_done_before_is_counted_once(console):
    with ProgressDisplay(SPECS, console) as observer:
        observer.on_skipped(SPECS[0])
        observer.on_skipped(SPECS[1])
        observer.on_started(SPECS[2])
        observer.on_finished(SPECS[2], record(SPECS[2]))
    shown = console.file.getvalue()
    assert shown.count("on record and not done again") == 1
    assert "2 of 3 runs are on record" in shown


@pytest.fixture
def clock(monkeypatch):
    """A time that the test sets."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(display.time, "monotonic", lambda: now.seconds)
    return now


def test_nothing_is_said_of_the_time_before_anything_was_timed(console):
    assert ProgressDisplay(SPECS, console).outlook() == "1 fit not timed yet and 2 bench cells not timed yet"


def test_the_time_left_follows_from_the_steps_taken_here(console, clock):
    observer = ProgressDisplay((QUICK, replace(QUICK, seed=1)), console)
    observer.on_started(QUICK)
    for clock.seconds, done in ((10.0, 40), (14.0, 44)):  # resumed at step 40 of 60, a second each
        observer.on_progress(QUICK, step(done))
    assert observer.outlook() == f"about {format_duration(16 + 30)} left"  # and another one that takes 30


def test_the_time_left_follows_from_the_runs_before(console, clock):
    observer = ProgressDisplay(SPECS, console)
    observer.on_started(SPECS[1])
    observer.on_finished(SPECS[1], record(SPECS[1], seconds=1000.0))
    observer.on_skipped(QUICK)
    assert observer.outlook() == f"about {format_duration(2000)} left"  # twice the length


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.6, "8 s"), (59.7, "1 min"), (200, "3 min"), (7500, "2 h 5 min")]
)
def test_durations_are_spoken(seconds, text):
    assert format_duration(seconds) == text


def test_every_kind_of_run_has_a_noun_and_a_record():
    kinds = {spec.kind for spec in get_args(AnySpec)}
    assert kinds == set(display.NOUNS) == set(DONE_TYPES) == set(FAILED_TYPES)
