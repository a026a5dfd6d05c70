"""Whoever watches a comparison reads which run of how many, step, loss and the time left."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from experiments_sample import QUICK
from rich.console import Console

from subquad.experiments import live
from subquad.experiments.bench import cells
from subquad.experiments.live import Live, spoken
from subquad.experiments.spec import Row

BENCHES = cells([Row(attention="linear")], lengths=[64, 128], heads=2, head_dim=4, device="cpu", threads=1)
SPECS = (QUICK, *BENCHES)


def step(number):
    return {"phase": "train", "step": number, "steps": QUICK.steps, "loss": 0.25}


def record(spec, status="ok", seconds=10.0, **result):
    return {"status": status, "reason": "why", "seconds": seconds, "result": result}


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def console(request):
    return Console(file=io.StringIO(), force_terminal=request.param, width=160, color_system=None)


def test_a_run_under_way_shows_place_step_loss_and_time_left(console, monkeypatch):
    monkeypatch.setattr(live, "EVERY", 0.0)
    with Live(SPECS, console) as watch:
        watch.started(QUICK)
        watch.moved(QUICK, step(29))
        watch.moved(QUICK, step(30))
        watch.progress.refresh()
        shown = console.file.getvalue()
    assert "run 1 of 3: linear · seed 0" in shown
    assert "train step 30 of 60, loss 0.2500" in shown
    assert "left" in shown


def test_what_a_run_notes_is_a_line_of_its_own(console):
    with Live(SPECS, console) as watch:
        watch.noted(QUICK, "'kept' is damaged")
    assert "run 1 of 3: linear · seed 0: 'kept' is damaged" in console.file.getvalue()


def test_an_ended_run_leaves_its_scores_or_its_reason(console):
    with Live(SPECS, console) as watch:
        for spec, made in ((QUICK, record(QUICK, test={"auc": 0.75})), (BENCHES[0], record(None, "timeout"))):
            watch.started(spec)
            watch.ended(spec, made)
    shown = console.file.getvalue()
    assert "run 1 of 3: linear · seed 0: auc 0.7500, 10 s" in shown
    assert "run 2 of 3: bench linear · 64 tokens: timeout: why" in shown


def test_what_was_done_before_is_counted_once(console):
    with Live(SPECS, console) as watch:
        watch.found(SPECS[0])
        watch.found(SPECS[1])
        watch.started(SPECS[2])
        watch.ended(SPECS[2], record(SPECS[2]))
    shown = console.file.getvalue()
    assert shown.count("on record and not done again") == 1
    assert "2 of 3 runs are on record" in shown


@pytest.fixture
def clock(monkeypatch):
    """A time that the test sets."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(live.time, "monotonic", lambda: now.seconds)
    return now


def test_nothing_is_said_of_the_time_before_anything_was_timed(console):
    assert Live(SPECS, console).outlook() == "1 fit not timed yet and 2 bench cells not timed yet"


def test_the_time_left_follows_from_the_steps_taken_here(console, clock):
    watch = Live((QUICK, replace(QUICK, seed=1)), console)
    watch.started(QUICK)
    for clock.seconds, done in ((10.0, 40), (14.0, 44)):  # resumed at step 40 of 60, a second each
        watch.moved(QUICK, step(done))
    assert watch.outlook() == f"about {spoken(16 + 30)} left"  # and another one that takes 30


def test_the_time_left_follows_from_the_runs_before(console, clock):
    watch = Live(SPECS, console)
    watch.started(SPECS[1])
    watch.ended(SPECS[1], record(SPECS[1], seconds=1000.0))
    watch.found(QUICK)
    assert watch.outlook() == f"about {spoken(2000)} left"  # twice the length


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.6, "8 s"), (59.7, "1 min"), (200, "3 min"), (7500, "2 h 5 min")]
)
def test_durations_are_spoken(seconds, text):
    assert spoken(seconds) == text
