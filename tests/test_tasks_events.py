"""Batches and encodings: every example once, padding masked, and nothing lost on the way."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from purchases import purchases
from torch.testing import assert_close

from subquad.documents import validated
from subquad.fields import SPLITS
from subquad.objectives import BinaryClassification, Regression
from subquad.tasks import DataError
from subquad.tasks.encoding import Encoding, Histories
from subquad.tasks.events import EventData, Split
from subquad.tasks.splits import split_of
from subquad.tasks.transactions import prepared

DATA = prepared(purchases(), "churn", fingerprint="made up")
MEAN, DEVIATION = torch.tensor(DATA.encoding.mean), torch.tensor(DATA.encoding.deviation)
PLAIN = Encoding(
    entity="who",
    time="when",
    categorical=("what", "where"),
    numeric=("much",),
    clock="number",
    end="last event",
    vocabularies=(("a", "b", None), ("x",)),
    mean=(1.0, 0.5, 0.0, 2.0),
    deviation=(2.0, 0.25, 0.5, 4.0),
)


def batches(
    data: EventData = DATA, split: Split = "train", *, size=8, length=1000, seed=0, epoch=0, shuffle=True
):
    return list(data.batches(split, size=size, length=length, seed=seed, epoch=epoch, shuffle=shuffle))


def numbered() -> EventData:
    """The same with the number of each example as its answer."""
    parts = {}
    for split in SPLITS:
        examples = DATA.examples(split)
        parts[split] = replace(examples, target=np.arange(len(examples), dtype=np.float64))
    return replace(DATA, objective=Regression(), **parts)


def order(**options: Any) -> list[float]:
    return torch.cat([batch.target for batch in batches(numbered(), **options)]).tolist()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_every_example_comes_once(split, shuffle, size):
    assert sorted(order(split=split, shuffle=shuffle, size=size)) == list(range(len(DATA.examples(split))))


def test_the_order_is_the_seeds_and_the_epochs():
    assert order(seed=3, epoch=5) == order(seed=3, epoch=5)
    assert len({tuple(order(seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_unshuffled_order_is_the_same_whatever_the_seed():
    assert order(shuffle=False, seed=0) == order(shuffle=False, seed=1)


@pytest.mark.parametrize("shuffle", [True, False])
def test_histories_of_similar_length_stand_together(shuffle):
    taken = sum(batch.valid.numel() for batch in batches(shuffle=shuffle))
    events = int((DATA.train.stop - DATA.train.start).sum())
    alone = len(DATA.train) * int((DATA.train.stop - DATA.train.start).max())
    assert taken - events < 0.2 * (alone - events)


def test_padding_stands_last_and_is_nothing():
    for batch in batches():
        assert (batch.valid.long().diff(dim=1) <= 0).all()
        assert batch.valid.any(1).all()
        assert not batch.inputs[0][~batch.valid].any()
        assert not batch.inputs[1][~batch.valid].any()
        assert batch.valid.all(0).any()


@pytest.mark.parametrize("length", [1, 5, 40])
def test_a_shorter_length_keeps_the_last_events(length):
    test = DATA.test
    (whole, _), (short, valid) = (
        DATA.encoding.inputs(DATA.histories, test.start, test.stop, test.until, length=most)
        for most in (1000, length)
    )
    for row, count in enumerate(test.stop - test.start):
        kept = slice(max(count - length, 0), count)
        assert_close(short.numeric[row][valid[row]], whole.numeric[row, kept])
        assert_close(short.categorical[row][valid[row]], whole.categorical[row, kept])


def test_numbers_are_standardised_over_the_training_histories():
    numbers = torch.cat([batch.inputs[1][batch.valid] for batch in batches()]).double()
    assert_close(numbers.mean(0), torch.zeros(4, dtype=torch.double), atol=1e-5, rtol=0)
    assert_close(numbers.std(0, correction=0), torch.ones(4, dtype=torch.double), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("length", "size"), [(0, 8), (8, 0)])
def test_empty_batches_are_refused(length, size):
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        batches(length=length, size=size)


FRAME = pl.DataFrame(
    {
        "what": ["a", None, "z", "b", "a"],
        "much": [0.0, -3.0, 7.0, 1.0, 0.0],
        "when": [5, 1, 4, 9, 4],
        "where": ["x", "y", None, "x", "x"],
        "who": ["two", "one", "two", "two", "one"],
    }
)


def test_a_frame_becomes_the_numbers_that_its_encoding_says():
    entities, inputs, valid = PLAIN.batch(FRAME, 3)
    assert entities.to_list() == ["one", "two"]
    assert_close(valid, torch.tensor([[True, True, False], [True, True, True]]))
    assert_close(inputs.categorical[0], torch.tensor([[3, 0], [1, 1], [0, 0]]))
    assert_close(inputs.categorical[1], torch.tensor([[0, 0], [1, 1], [2, 1]]))
    log = torch.tensor([-3.0, 0.0, 7.0, 0.0, 1.0]).abs().log1p() * torch.tensor([-1, 1, 1, 1, 1])
    gap = torch.tensor([0.0, 3, 0, 1, 4]).log1p()
    wait = torch.tensor([3.0, 0, 1, 4, 0]).log1p()
    age = torch.tensor([3.0, 0, 5, 4, 0]).log1p()
    expected = torch.stack([(log - 1) / 2, (gap - 0.5) / 0.25, wait / 0.5, (age - 2) / 4], -1)
    assert_close(inputs.numeric[valid], expected)


AMOUNTS = np.random.default_rng(0).permutation(40).astype(float)


def test_events_of_one_moment_stay_in_the_order_given():
    frame = pl.DataFrame({"who": ["one"] * 40, "when": [1.0] * 40, "much": AMOUNTS})
    _, histories = replace(PLAIN, categorical=(), vocabularies=()).encode(frame)
    np.testing.assert_allclose(np.expm1(histories.logs[:, 0]), AMOUNTS, rtol=1e-5)


def test_an_encoding_survives_being_written():
    for encoding in (PLAIN, DATA.encoding):
        assert validated(Encoding, json.loads(json.dumps(asdict(encoding)))) == encoding


def test_an_objective_survives_being_written():
    objective = BinaryClassification(classes=("no", "yes"))
    assert validated(BinaryClassification, json.loads(json.dumps(asdict(objective)))) == objective


def test_joined_histories_are_what_they_were():
    _, whole = PLAIN.encode(FRAME)
    parts = [PLAIN.encode(FRAME.filter(pl.col("who") == who))[1] for who in ("one", "two")]
    joined = Histories.joined(parts)
    assert joined.entities == whole.entities
    for column in ("start", "stop", "time", "categorical", "logs"):
        np.testing.assert_array_equal(getattr(joined, column), getattr(whole, column))


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (FRAME.drop("much"), "the given frame: no column 'much'; there are 'what', 'when', 'where', 'who'"),
        (FRAME.head(0), "the given frame: empty: there are no rows"),
        (FRAME.with_columns(much=None), "the given frame: column 'much' holds Null, not numbers"),
        (FRAME.with_columns(pl.col("when").replace(9, None)), "column 'when': 1 value not a time"),
        (FRAME.with_columns(when=pl.date(2020, 1, 1)), "column 'when' holds Date; training had numbers"),
        (FRAME.with_columns(what=pl.lit([1])), "column 'what' holds List(Int64); give text"),
    ],
    ids=["column", "rows", "type", "value", "clock", "nested"],
)
def test_a_frame_that_is_not_as_in_training_is_refused(frame, said):
    with pytest.raises(DataError) as caught:
        PLAIN.batch(frame, 3)
    assert said in str(caught.value)


def test_a_moment_is_refused_where_training_had_none():
    with pytest.raises(DataError, match="leave until= out"):
        PLAIN.batch(FRAME, 3, until=10.0)


def test_probabilities_sum_to_one_and_rise_with_the_logit():
    answers = BinaryClassification(classes=("no", "yes")).answers(
        np.array([[-800.0], [0.0], [2.0]]), np.ones((3, 1), bool)
    )
    yes, no = (np.array(answers[f"probability of {name}"]) for name in ("yes", "no"))
    np.testing.assert_allclose(yes + no, 1)
    np.testing.assert_allclose(yes, [0, 0.5, 1 / (1 + np.exp(-2))], atol=1e-12)
    assert answers["class"] == ["no", "no", "yes"]


def test_splits_hold_their_shares_and_never_change():
    splits = [split_of(str(number)) for number in range(5000)]
    shares = [splits.count(split) / len(splits) for split in SPLITS]
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=0.02)
    assert splits[:6] == ["train", "validation", "validation", "validation", "train", "train"]


def test_the_list_of_tasks_loads_neither_torch_nor_polars():
    code = "import sys, subquad.tasks; print({'torch', 'polars', 'numpy', 'sklearn'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"


def test_a_summary_is_json():
    assert json.loads(json.dumps(DATA.summary)) == DATA.summary
    assert DATA.summary["splits"]["train"]["examples"] == len(DATA.train)


def test_an_event_waits_for_the_next_and_the_last_for_the_cut_off():
    for batch in batches():
        _, gap, wait, age = (batch.inputs[1] * DEVIATION + MEAN).unbind(-1)
        both = batch.valid[:, 1:]
        assert_close(wait[:, :-1][both], gap[:, 1:][both], atol=1e-5, rtol=0)
        last = torch.arange(len(batch.target)), batch.valid.sum(1) - 1
        assert_close(wait[last], age[last], atol=1e-5, rtol=0)
        assert (age[last] > 0).all()
