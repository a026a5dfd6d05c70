"""The recall probes: their oracles solve them, options do what they say, and bytes are everybody's."""

from typing import Any

import numpy as np
import pytest
import torch

from subquad import tasks
from subquad.experiments.rows import task_of
from subquad.fields import IGNORED, Batch
from subquad.objectives import TokenClassification
from subquad.tasks import DataError
from subquad.tasks.random_bits import RandomBits
from subquad.tasks.sequences import SequenceData
from subquad.testing.task import Case, Check, contract

SMALL: dict[str, Any] = {"train": 300, "validation": 20, "test": 30}
PROBES: dict[str, dict[str, Any]] = {
    "recall": {"tokens": 24, "pairs": 5, "keys": 8},
    "recall, not joined": {"tokens": 24, "pairs": 5, "keys": 8, "joined": False},
    "copying": {"tokens": 24, "items": 6},
    "needle": {"tokens": 24, "distance": 15, "alphabet": 6},
    "adding": {"tokens": 24},
}
FINGERPRINTS = {
    "recall": "795dc73076963b61b53d33975168041cc476f659c6a2311f4f3f44abf4a5e088",
    "recall, not joined": "475780cc9be2371fd81b50e54fc510df990a0c64bee0fdbef10a9742aa05a3f3",
    "copying": "2ef6a68ad263249b8eabba452091495b1b443805c5bba6b509bf3a205ab24dca",
    "needle": "21538e2a01723a55169eb4b12bd2f85634510cd12be8e3f49544779f7566927d",
    "adding": "5cf0c89a5fd59075d9a7fe8e8f070796ed59de6cb17458d2c8b03f2f53336153",
}


def load(probe: str, **options: Any) -> SequenceData:
    data = tasks.load(probe.split(",")[0], **{**SMALL, **PROBES[probe], **options})
    assert isinstance(data, SequenceData)
    return data


@pytest.mark.parametrize("check", contract(), ids=lambda check: check.__name__)
@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_passes_the_contract(probe: str, check: Check):
    check(Case(tasks.build(probe.split(",")[0], **SMALL, **PROBES[probe]), None))


@pytest.mark.parametrize("probe", PROBES)
def test_the_same_options_make_the_same_bytes_on_every_machine(probe: str):
    assert load(probe).fingerprint == FINGERPRINTS[probe]


@pytest.mark.parametrize("probe", PROBES)
def test_another_seed_makes_other_sequences(probe: str):
    assert load(probe, seed=1).fingerprint != load(probe).fingerprint


@pytest.mark.parametrize("name", ["listops", "recall", "copying", "needle", "adding"])
def test_a_size_stands_for_its_options_and_one_named_beside_it_goes_before(name: str):
    cls = tasks.find(name)
    assert set(cls.traits.sizes) == {"quick", "small", "full"}
    quick = cls.traits.sizes["quick"]
    assert task_of(f"{name}:size=quick") == (name, quick, None)
    default = tasks.options(cls)["train"]
    others = {option: value for option, value in quick.items() if option != "train"}
    assert task_of(f"{name}:size=quick,train={default}") == (name, others, None)
    assert vars(tasks.build(name, size="quick")) == vars(cls(**quick))
    tasks.build(name, size="full")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("needle:size=tiny", "the task 'needle' has no size 'tiny'; known: full, quick, small"),
        ("transactions:size=quick", "the task 'transactions' has no size 'quick'; it has one only"),
        ("needle:size=quick,size=full", "gives 'size' twice"),
    ],
)
def test_a_size_that_is_not_there_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        task_of(text)


def test_each_key_is_asked_for_once_and_behind_the_pairs():
    for joined, width in ((True, 1), (False, 2)):
        data = load("recall", joined=joined)
        train = data.splits["train"]
        keys = train.symbols[:, 0].reshape(-1, 24)
        assert all(len(set(row[row > 0])) == 5 and (row > 0).sum() == 10 for row in keys)
        assert train.asked is not None
        assert (train.asked >= 5 * width).all()
        assert (np.diff(train.asked) > 0).all()


def test_nearer_places_are_asked_at_more_often():
    data = load("recall", train=2000)
    asked = data.splits["train"].asked
    assert asked is not None
    counts = np.bincount(asked.ravel(), minlength=24)[5:]
    assert counts[0] > counts[4] > counts[18]


def test_a_needle_lies_at_its_distance():
    data = load("needle", distance=9)
    rows = data.splits["test"].symbols.reshape(-1, 24)
    assert (rows[:, 23 - 9] == 6).all()
    assert np.array_equal(rows[:, 24 - 9], data.truth("test")[:, 0])


def test_of_the_added_digits_one_is_marked_in_each_half():
    rows = load("adding").splits["train"].symbols.reshape(-1, 24)
    marked = (rows >= 10) & (rows < 20)
    assert (marked[:, :11].sum(1) == 1).all()
    assert (marked[:, 11:].sum(1) == 1).all()


@pytest.mark.parametrize(
    ("probe", "options", "message"),
    [
        ("recall", {"pairs": 9}, "recall: pairs must be 1 to the number of keys, 8, not 9"),
        ("recall", {"tokens": 9}, "recall: tokens must be at least 10 for 5 pairs, not 9"),
        ("recall", {"tokens": 20_000}, "recall: tokens must be at most 16,384, not 20,000"),
        ("recall", {"train": 0}, "recall: train, validation and test must be at least 1"),
        ("copying", {"tokens": 12}, "copying: tokens must be at least 13 for 6 items, not 12"),
        ("copying", {"items": 1, "alphabet": 2}, "copying: only 2 different sequences of 350 found"),
        ("needle", {"distance": 24}, "needle: distance must be 2 to 23, not 24"),
        ("adding", {"seed": -1}, "adding: seed must be at least 0, not -1"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(probe: str, options: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        load(probe, **options)


def test_a_sample_has_no_number_twice_and_every_order():
    drawn = RandomBits(0).sample(6000, 3, among=3)
    orders, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(orders) == 6
    assert np.abs(counts - 1000).max() < 4 * (6000 / 6 * 5 / 6) ** 0.5


def test_a_weighted_sample_goes_by_its_weights():
    drawn = RandomBits(0).weighted_sample(9000, 2, weights=np.array([4.0, 2.0, 1.0, 0.0]))
    assert (drawn[:, 0] != drawn[:, 1]).all()
    assert drawn.max() == 2
    shares = np.bincount(drawn[:, 0], minlength=3) / 9000
    assert np.abs(shares - np.array([4, 2, 1]) / 7).max() < 0.03


def test_loss_and_score_are_of_the_tokens_asked_alone():
    objective = TokenClassification(classes=("a", "b", "c"))
    target = torch.tensor([[IGNORED, 1, IGNORED, 2], [0, IGNORED, 1, IGNORED]])
    output = objective.certain(target.numpy()) * 50
    output[0, 3] = torch.tensor([50.0, 0.0, 0.0])
    output[:, 0] = torch.where(target[:, :1] == IGNORED, torch.nan_to_num(output[:, 0]) - 9, output[:, 0])
    batch = Batch((target,), torch.ones(2, 4, dtype=torch.bool), target, torch.tensor([1, 0]))
    scorer = objective.scorer()
    scorer.add(output, batch)
    judged = scorer.result()
    assert judged.contributions.tolist() == [1.0, 0.5]
    assert judged.scores["accuracy"] == 0.75
    assert judged.scores["loss"] == pytest.approx(50 / 4)
    assert objective.loss(output, batch).item() == pytest.approx(50 / 4)
